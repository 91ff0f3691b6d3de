from groupdetr_mmdet.commands.cli import run

if __name__ == '__main__':
    run('make-shapes')
