# Half of the images become a crop of a mosaic of four, some of these blend with another crop, and
# colors change. Insert it after LoadAnnotations of a light pipeline:
#     train_pipeline = [*light[:2], *_base_.strong_augmentation, *light[2:]]
strong_augmentation = [
    dict(
        type='RandomApply',
        prob=0.5,
        transforms=[
            dict(type='CachedMosaic', img_scale=(640, 640), max_cached_images=20),
            # From a crop of about one image at full size to all four at half size
            dict(
                type='RandomCrop',
                crop_type='relative_range',
                crop_size=(0.5, 0.5),
                allow_negative_crop=True),
            dict(
                type='CachedMixUp',
                img_scale=(960, 960),
                ratio_range=(0.75, 1.25),
                max_cached_images=10,
                prob=0.25),
            # Remove slivers of objects at a border
            dict(type='FilterAnnotations', min_gt_bbox_wh=(4, 4), keep_empty=False)
        ]),
    dict(type='YOLOXHSVRandomAug')
]
