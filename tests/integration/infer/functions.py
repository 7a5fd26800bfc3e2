"""Inference functions for tests, as text: numpy and scipy only, so that a host starts fast.

All do what a whole-array filter of this file's twin in the tests does, so that results have an oracle.
"""

CLASSIFIER = '''
import json
import numpy as np


class BrightClassifier:
    """2 where the mean over (2 radius + 1) squared pixels of all bands is above a threshold, 1 elsewhere."""

    def __init__(self):
        self.name = "bright"
        self.description = "a local filter"

    def initialize(self, **kwargs):
        pass

    def getParameterInfo(self):
        return [
            {"name": "raster", "dataType": "raster", "required": True},
            {"name": "model", "dataType": "string", "required": True},
            {"name": "device", "dataType": "numeric", "required": False},
            {"name": "padding", "dataType": "numeric", "value": 8},
            {"name": "tile", "dataType": "numeric", "value": 64},
            {"name": "level", "dataType": "numeric", "value": 128},
            {"name": "fail_at", "dataType": "numeric", "value": -1},
        ]

    def getConfiguration(self, **scalars):
        self.padding = int(scalars["padding"])
        self.level = float(scalars["level"])
        self.fail_at = int(scalars["fail_at"])
        self.calls = 0
        tile = int(scalars["tile"])
        return {
            "extractBands": (0, 1, 2),
            "padding": self.padding,
            "tx": tile,
            "ty": tile,
            "fixedTileSize": 1,
            "inputMask": True,
            "inheritProperties": 14,
        }

    def updateRasterInfo(self, **kwargs):
        kwargs["output_info"]["bandCount"] = 1
        kwargs["output_info"]["pixelType"] = "i4"
        return kwargs

    def updatePixels(self, tlc, shape, props, **blocks):
        self.calls += 1
        if self.calls == self.fail_at:
            raise ValueError("told to fail")
        total = blocks["raster_pixels"].astype(np.int64).sum(axis=0)
        radius = 3
        padded = np.pad(total, radius)
        mean = sum(
            padded[r : r + total.shape[0], c : c + total.shape[1]]
            for r in range(2 * radius + 1) for c in range(2 * radius + 1)
        )
        p = self.padding
        values = np.where(mean > 3 * self.level * (2 * radius + 1) ** 2, 2, 1).astype(np.int32)
        return {"output_pixels": values[p : p + shape[0], p : p + shape[1]][None]}
'''

DETECTOR = '''
import json
import numpy as np
from scipy import ndimage


class BlobDetector:
    """A box around each connected group of bright pixels."""

    def __init__(self):
        self.name = "blobs"
        self.description = "connected bright pixels"

    def initialize(self, **kwargs):
        pass

    def getParameterInfo(self):
        return [
            {"name": "raster", "dataType": "raster", "required": True},
            {"name": "model", "dataType": "string", "required": True},
            {"name": "device", "dataType": "numeric", "required": False},
            {"name": "padding", "dataType": "numeric", "value": 24},
            {"name": "tile", "dataType": "numeric", "value": 80},
        ]

    def getConfiguration(self, **scalars):
        self.padding = int(scalars["padding"])
        tile = int(scalars["tile"])
        return {"extractBands": (0,), "padding": self.padding, "tx": tile, "ty": tile, "fixedTileSize": 1}

    def getFields(self):
        fields = [("OID", "OID"), ("Class", "String"), ("Confidence", "Double"), ("Shape", "Geometry")]
        described = [{"name": name, "type": "esriFieldType" + kind, "alias": name} for name, kind in fields]
        return json.dumps({"fields": described})

    def getGeometryType(self):
        return 4

    def vectorize(self, **blocks):
        labels, _ = ndimage.label(blocks["raster_pixels"][0] > 128)
        features = []
        for rows, cols in ndimage.find_objects(labels):
            x0, x1, y0, y1 = (v - self.padding for v in (cols.start, cols.stop, rows.start, rows.stop))
            attributes = {"OID": 1, "Class": "Blob", "Confidence": 50.0 + (x1 - x0), "Tall": int(y1 - y0)}
            rings = [[[x0, y0], [x1, y0], [x1, y1], [x0, y1]]]
            features.append({"attributes": attributes, "geometry": {"rings": rings}})
        return {"output_vectors": json.dumps({"features": features})}
'''

PAIRS = '''
import numpy as np


class PairComparer:
    """2 where the later date is brighter by more than a threshold, 1 elsewhere."""

    def initialize(self, **kwargs):
        pass

    def getParameterInfo(self):
        return [
            {"name": "raster", "dataType": "raster", "required": True},
            {"name": "model", "dataType": "string", "required": True},
            {"name": "device", "dataType": "numeric", "required": False},
            {"name": "padding", "dataType": "numeric", "value": 4},
            {"name": "step", "dataType": "numeric", "value": 20},
        ]

    def getConfiguration(self, **scalars):
        self.padding, self.step = int(scalars["padding"]), float(scalars["step"])
        return {"padding": self.padding, "tx": 64, "ty": 64, "fixedTileSize": 1, "inputMask": True}

    def updateRasterInfo(self, **kwargs):
        kwargs["output_info"].update(bandCount=1, pixelType="i4")
        return kwargs

    def updatePixels(self, tlc, shape, props, **blocks):
        pixels, p = blocks["raster_pixels"].astype(np.int64), self.padding
        half = len(pixels) // 2
        values = np.where(pixels[half:].sum(axis=0) - pixels[:half].sum(axis=0) > self.step, 2, 1)
        return {"output_pixels": values.astype(np.int32)[None, p : p + shape[0], p : p + shape[1]]}
'''

_SCORES = '''

class Scores:
    """Of two classes, of chips of 32 pixels and their padding."""

    def getConfiguration(self, **scalars):
        return {
            **super().getConfiguration(**scalars),
            "predict_scores": True,
            "number_of_scores": 2,
            "score_values": (1, 2),
            "tile_size": 32 + 2 * int(scalars["padding"]),
        }

    def of_means(self, values, scale, offset=0.0):
        """The second class is as probable as the mean of (n, rows, cols) over 7 x 7 pixels is large."""
        padded = np.pad(values, ((0, 0), (3, 3), (3, 3)))
        rows, cols = values.shape[1:]
        mean = sum(padded[:, r : r + rows, c : c + cols] for r in range(7) for c in range(7)) / scale
        second = np.clip(offset + mean, 0, 1).astype(np.float32)
        return np.stack([1 - second, second], axis=1)
'''

PAIR_SCORER = (
    _SCORES
    + '''

class PairScorer(Scores, PairComparer):
    """The same comparison of means over 7 x 7 pixels, with scores: the larger the step, the surer."""

    def predict_scores(self, batch):
        half = batch.shape[1] // 2
        step = batch[:, half:].astype(np.int64).sum(axis=1) - batch[:, :half].astype(np.int64).sum(axis=1)
        return self.of_means(step, 49 * 1024, 0.5)
'''
)

OBJECTS = '''
import json
import numpy as np


class MeanClassifier:
    """Bright where the mean over the valid pixels of a crop exceeds a level; the mean is the confidence."""

    def initialize(self, **kwargs):
        pass

    def getParameterInfo(self):
        return [
            {"name": "rasters", "dataType": "rasters", "required": True},
            {"name": "model", "dataType": "string", "required": True},
            {"name": "device", "dataType": "numeric", "required": False},
            {"name": "batch_size", "dataType": "numeric", "value": 4},
            {"name": "size", "dataType": "numeric", "value": 24},
            {"name": "fixed", "dataType": "numeric", "value": 1},
            {"name": "blacken", "dataType": "numeric", "value": 0},
            {"name": "captions", "dataType": "numeric", "value": 0},
        ]

    def getConfiguration(self, **scalars):
        size, self.batch = int(scalars["size"]), int(scalars["batch_size"])
        self.fixed, self.captions = int(scalars["fixed"]), int(scalars["captions"])
        return {
            "batch_size": self.batch, "tx": size, "ty": size, "inputMask": True, "padding": 0,
            "CropSizeFixed": self.fixed, "BlackenAroundFeature": int(scalars["blacken"]),
        }

    def getFields(self):
        fields = [("OID", "OID"), ("Label", "String"), ("Confidence", "String"), ("Shape", "Geometry")]
        if self.captions:
            fields.append(("caption", "String"))
        described = [{"name": name, "type": "esriFieldType" + kind, "alias": name} for name, kind in fields]
        return json.dumps({"fields": described})

    def getGeometryType(self):
        return 4

    def vectorize(self, **blocks):
        crops, masks = blocks["rasters_pixels"], blocks["rasters_mask"]
        if self.fixed and len(crops) != self.batch:
            raise ValueError("a short batch")
        features = []
        for number, (crop, mask) in enumerate(zip(crops, masks)):
            if crop[np.broadcast_to(mask, crop.shape) == 0].any():
                raise ValueError("invalid pixels are not zero")
            mean = float(crop[np.broadcast_to(mask, crop.shape) != 0].mean())
            label = "Bright" if mean > 128 else "Dark"
            attributes = {"OID": number, "Label": label, "Confidence": str(mean), "High": int(crop.shape[1])}
            if self.captions:
                attributes["caption"] = f"something of {mean:.0f}"
            ring = [[0, 0], [1, 0], [1, 1], [0, 1]]
            features.append({"attributes": attributes, "geometry": {"rings": [ring]}})
        return {"output_vectors": json.dumps({"features": features})}
'''

SCORER = (
    _SCORES
    + '''

class ScoreClassifier(Scores, BrightClassifier):
    """The same filter, with scores: the brighter, the surer."""

    def predict_scores(self, batch):
        return self.of_means(batch.astype(np.int64).sum(axis=1), 147 * 256)
'''
)
