"""Draw what a detector in an ONNX file finds, by onnxruntime, numpy, OpenCV and Pillow alone."""
import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from PIL import Image


class Detector:
    def __init__(self, path):
        self.session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
        self.meta = self.session.get_modelmeta().custom_metadata_map
        self.classes, self.mean, self.std, self.resize = (
            json.loads(self.meta[key]) for key in ('classes', 'mean', 'std', 'resize'))

    def __call__(self, image):
        """Boxes (left, top, right, bottom) in pixels of a BGR image, scores, names of classes."""
        (height, width), size = image.shape[:2], self.size_of(image)
        resized = cv2.resize(image, size) if self.resize['backend'] == 'cv2' else np.array(
            Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        resized = resized[..., ::-1 if self.meta['channels'] == 'RGB' else 1]
        pixels = ((resized - np.float32(self.mean)) / np.float32(self.std)).transpose(2, 0, 1)
        (boxes, ), (scores, ), (labels, ) = self.session.run(
            None, dict(images=pixels[None], image_sizes=np.array([size[::-1]])))
        boxes *= np.float32([width, height] * 2) / np.float32([*size, *size])
        return boxes, scores, [self.classes[label] for label in labels]

    def size_of(self, image):
        """Width and height to resize an image to."""
        (height, width), scale = image.shape[:2], self.resize['scale']
        if not self.resize['keep_ratio']:
            return scale or (width, height)
        shorter, longer = sorted((height, width))
        if self.resize['type'] == 'Resize':
            ratio = min(max(scale) / longer, min(scale) / shorter)
            return int(width * ratio + .5), int(height * ratio + .5)
        fitted = min(scale)
        if longer / shorter * fitted > max(scale):
            fitted = max(scale) * shorter / longer
        if round(fitted) == shorter:
            return width, height
        sides = round(fitted), int(fitted * longer / shorter)
        return sides if width <= height else sides[::-1]

    def draw(self, image, score_thr):
        for box, score, name in zip(*self(image)):
            if score >= score_thr:
                left, top, right, bottom = map(round, box.tolist())
                cv2.rectangle(image, (left, top), (right, bottom), (0, 200, 0), 2)
                cv2.putText(image, f'{name} {score:.2f}', (left, top + 14), 0, .5, (0, 200, 0))
        return image


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('model', help='the .onnx file')
    parser.add_argument('inputs', nargs='+', help='images and videos')
    parser.add_argument('--out', default='out', help='folder for the pictures (default: out)')
    parser.add_argument('--score-thr', type=float, default=.3, help='the lowest score to draw')
    args = parser.parse_args()
    detector, out = Detector(args.model), Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for path in map(Path, args.inputs):
        if (image := cv2.imread(str(path))) is not None:
            cv2.imwrite(str(out / path.name), detector.draw(image, args.score_thr))
        elif (video := cv2.VideoCapture(str(path))).isOpened():
            drawn = cv2.VideoWriter(f'{out / path.stem}.mp4', cv2.VideoWriter.fourcc(*'mp4v'),
                                    video.get(5), (int(video.get(3)), int(video.get(4))))
            while (frame := video.read()[1]) is not None:
                drawn.write(detector.draw(frame, args.score_thr))
            drawn.release()
        else:
            parser.error(f'{path} is no image or video that OpenCV reads.')
