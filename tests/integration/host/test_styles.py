"""Functions as they are written in the wild: Esri's templates, samples, and object classifiers."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from tasks.errors import BadInputError
from tasks.host import FunctionFailure, HostLimits, HostProcess
from tasks.package import Package

MakePackage = Callable[..., Package]

RASTER = '[{"name": "raster", "dataType": "raster"}]'
RASTERS = """[{"name": "rasters", "dataType": "rasters", "required": True},
            {"name": "model", "dataType": "string"}, {"name": "device", "dataType": "numeric"},
            {"name": "batch_size", "dataType": "numeric", "value": 4}]"""


def _pixels(bands: int = 3, rows: int = 12, cols: int = 12) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 255, (bands, rows, cols), dtype=np.uint8)


# -- which class -------------------------------------------------------------------------------------------

CHILD_STYLE = """
import numpy as np

class TemplateBaseClassifier:
    def load_model(self, path): raise NotImplementedError
    def getParameterInfo(self, required_parameters): return required_parameters
    def inference(self, batch, **scalars): raise NotImplementedError

class ChildImageClassifier(TemplateBaseClassifier):
    def load_model(self, path): self.offset = 5
    def updatePixels(self, *of_another_kind): raise AssertionError("a helper was taken for the function")
    def getParameterInfo(self, required_parameters):
        required_parameters.append({"name": "score", "dataType": "numeric", "value": 0.5})
        return required_parameters
    def inference(self, batch, **scalars):
        return (batch[:, :1] > 255 * float(scalars["score"])).astype("i4") + self.offset

class Base:
    def initialize(self, **kwargs):
        self.child = ChildImageClassifier()
        self.child.load_model(kwargs["model"])
    def getParameterInfo(self): return self.child.getParameterInfo([{"name": "raster", "dataType": "raster"}])
    def getConfiguration(self, **scalars): self.scalars = scalars; return {"padding": 0, "tx": 12, "ty": 12}
    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        return {"output_pixels": self.child.inference(pixelBlocks["raster_pixels"][None], **self.scalars)[0]}

class ImageClassifier(Base):
    pass
"""


def test_child_classifier_beside_the_function_is_not_taken_for_it(
    make_package: MakePackage, limits: HostLimits
) -> None:
    package = make_package(source=CHILD_STYLE, file_name="MyNet.py")
    pixels = _pixels()
    with HostProcess(package, "CPU", {"score": "0.25"}, limits=limits) as host:
        result = host.run("updatePixels", pixels)
    np.testing.assert_array_equal(result, (pixels[:1] > 63.75).astype(np.int32) + 5)


def test_class_may_come_from_a_sibling(make_package: MakePackage, limits: HostLimits) -> None:
    package = make_package(
        source="from implementation import ImageClassifier\n",
        file_name="Entry.py",
        files={"implementation.py": CHILD_STYLE},
    )
    with HostProcess(package, limits=limits) as host:
        assert set(np.unique(host.run("updatePixels", _pixels()))) <= {5, 6}


def test_two_whole_functions_in_one_file_are_not_guessed_between(
    make_package: MakePackage, limits: HostLimits
) -> None:
    source = "".join(
        f"class {name}:\n    def getParameterInfo(self): return []\n    def vectorize(self, **b): pass\n"
        for name in ("First", "Second")
    )
    with pytest.raises(FunctionFailure, match=r"found: First, Second"):
        HostProcess(make_package(source=source, file_name="Entry.py"), limits=limits).__enter__()


# -- methods that templates carry along --------------------------------------------------------------------


def test_template_methods_without_a_body_change_nothing(
    make_package: MakePackage, limits: HostLimits
) -> None:
    body = """
    def isLicensed(self, **productInfo):
        pass

    def updateKeyMetadata(self, names, bandIndex, **keyMetadata):
        '''to be filled in'''

    def selectRasters(self, tlc, shape, props):
        '''to be filled in'''

    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        return {"output_pixels": pixelBlocks["raster_pixels"][:1]}
    """
    pixels = _pixels()
    with HostProcess(make_package(body), limits=limits) as host:
        np.testing.assert_array_equal(host.run("updatePixels", pixels), pixels[:1])
        assert host.key_metadata == {-1: {}, 0: {}}


def test_key_metadata_is_asked_of_the_dataset_and_each_output_band(
    make_package: MakePackage, limits: HostLimits
) -> None:
    body = """
    def updateRasterInfo(self, **kwargs):
        kwargs["output_info"]["bandCount"] = 2
        return kwargs

    def updateKeyMetadata(self, names, bandIndex, **keyMetadata):
        assert names == ()
        if bandIndex == -1:
            keyMetadata["datatype"] = "Processed"
        else:
            keyMetadata["bandname"] = bandIndex
        return keyMetadata

    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        assert shape == (2, 8, 8), shape  # several bands: the shape has three dimensions
        return {"output_pixels": np.zeros(shape, "f4")}
    """
    with HostProcess(make_package(body), limits=limits) as host:
        assert host.key_metadata == {-1: {"datatype": "Processed"}, 0: {"bandname": 0}, 1: {"bandname": 1}}
        assert host.run("updatePixels", _pixels(), shape=(8, 8)).shape == (2, 8, 8)


def test_select_rasters_is_asked_before_each_block(make_package: MakePackage, limits: HostLimits) -> None:
    body = """
    def selectRasters(self, tlc, shape, props):
        self.asked = (tlc, shape, props["cellSize"])
        return ("raster",) if tlc[0] else ()

    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        assert self.asked == (tlc, shape, (2.0, 2.0)), self.asked
        assert sorted(pixelBlocks) == (["raster_mask", "raster_pixels"] if tlc[0] else [])
        return {"output_pixels": np.full(shape, len(pixelBlocks), "u1")}
    """
    with HostProcess(make_package(body), limits=limits) as host:
        for x, expected in ((1.0, 2), (0.0, 0)):
            result = host.run("updatePixels", _pixels(), tlc=(x, 5.0), props={"cellSize": (2.0, 2.0)})
            assert (result == expected).all()


def test_licence_check_of_the_reference_passes_and_a_refusal_is_quoted(
    make_package: MakePackage, limits: HostLimits
) -> None:
    body = """
    def isLicensed(self, **productInfo):
        major, minor, build = (productInfo.get(key, 0) for key in ("major", "minor", "build"))
        return {"okToRun": major >= 10 and minor >= 3.0 and build >= 4276, "message": "too old"}
    """
    with HostProcess(make_package(body), limits=limits) as host:
        assert host.scalars == {"padding": "0"}
    with pytest.raises(FunctionFailure, match="may not run: too old"):
        HostProcess(make_package(body.replace("major >= 10", "False")), limits=limits).__enter__()


def test_all_rasters_as_one(make_package: MakePackage, limits: HostLimits) -> None:
    body = """
    def getConfiguration(self, **scalars):
        return {"compositeRasters": True, "inputMask": True}

    def updateRasterInfo(self, **kwargs):
        assert kwargs["compositeraster_info"]["bandCount"] == kwargs["raster_info"]["bandCount"] == 3
        kwargs["output_info"]["bandCount"] = 1
        return kwargs

    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        return {"output_pixels": pixelBlocks["compositeraster_pixels"][:1]}
    """
    pixels = _pixels()
    with HostProcess(make_package(body), limits=limits) as host:
        np.testing.assert_array_equal(host.run("updatePixels", pixels), pixels[:1])


# -- super-tiles and edges ---------------------------------------------------------------------------------

SUPER_TILE = """
import json, os, sys
sys.path.append(os.path.dirname(__file__))
import numpy as np
import prf_utils

class Super:
    def initialize(self, **kwargs):
        with open(kwargs["model"]) as file:
            self.emd = json.load(file)
        arcpy.env.processorType = "CPU"
    def getParameterInfo(self):
        return [{"name": "raster", "dataType": "raster"},
                {"name": "padding", "dataType": "numeric", "value": 4},
                {"name": "batch_size", "dataType": "numeric", "value": 4}]
    def getConfiguration(self, **scalars):
        self.padding, batch = int(scalars["padding"]), int(scalars["batch_size"])
        self.r, self.c = prf_utils.rectangle(batch)
        self.step = self.emd["ImageHeight"] - 2 * self.padding
        return {"padding": self.padding, "tx": self.step * self.c, "ty": self.step * self.r,
                "fixedTileSize": 1, "inputMask": True}
    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        pixels, mask = pixelBlocks["raster_pixels"], pixelBlocks["raster_mask"]
        assert pixels.shape[1:] == (self.step * self.r + 8, self.step * self.c + 8), "the block is not full"
        pixels[np.where(mask == 0)] = 0
        size, p, rows = self.emd["ImageHeight"], self.padding, []
        for i in range(self.r):
            chips = [pixels[:, i * self.step : i * self.step + size, j * self.step : j * self.step + size]
                     for j in range(self.c)]
            assert all(chip.shape[1:] == (size, size) for chip in chips)
            rows.append(np.concatenate([chip[:1, p:-p, p:-p] for chip in chips], axis=2))
        return {"output_pixels": np.concatenate(rows, axis=1).astype("i4")}
"""


def test_super_tile_is_cut_and_stitched_by_the_function(
    make_package: MakePackage, limits: HostLimits
) -> None:
    utilities = "def rectangle(n):\n    r = int(n ** 0.5)\n    return r, n // r\n"
    package = make_package(
        source=SUPER_TILE,
        name="Super",
        files={"prf_utils.py": utilities},
        definition={"ImageHeight": 16, "ImageWidth": 16},
    )
    with HostProcess(package, "CPU", {"batch_size": "6"}, limits=limits) as host:
        tx, ty, padding = (host.configuration[key] for key in ("tx", "ty", "padding"))
        assert (tx, ty, padding) == (24, 16, 4)
        block = _pixels(3, ty + 2 * padding, tx + 2 * padding)
        # The raster ends inside the block: full size all the same, zero filled, masked.
        mask = np.zeros(block.shape, np.uint8)
        mask[:, :15, :20] = 1
        result = host.run("updatePixels", block, mask, shape=(ty, tx))
    expected = np.where(mask == 1, block, 0)[:1, 4:-4, 4:-4].astype(np.int32)
    np.testing.assert_array_equal(result, expected)


# -- object classification ---------------------------------------------------------------------------------

CLASSIFIER = f"""
def getParameterInfo(self):
    return {RASTERS}

def getConfiguration(self, **scalars):
    return {{"tx": 8, "ty": 8, "batch_size": int(scalars["batch_size"]), "CropSizeFixed": 0}}

def updateRasterInfo(self, **kwargs):
    assert type(kwargs["rasters_info"]) is tuple
    return kwargs

def getFields(self):
    return json.dumps({{"fields": [{{"name": "Label", "type": "esriFieldTypeString"}},
        {{"name": "Confidence", "type": "esriFieldTypeString"}}]}})

def vectorize(self, **pixelBlocks):
    chips, masks = pixelBlocks["rasters_pixels"], pixelBlocks["rasters_mask"]
    assert type(chips) is tuple and type(masks) is tuple
    batch = np.asarray(chips) * (np.asarray(masks) != 0)
    features = []
    for number, chip in enumerate(batch):
        h, w = chip.shape[1:]
        attributes = {{"OID": number + 1, "Label": str(int(chip.max())), "Confidence": "0.75"}}
        outline = [[0, 0], [w - 1, 0], [w - 1, h - 1], [0, h - 1]]
        features.append({{"attributes": attributes, "geometry": {{"rings": [outline]}}}})
    return {{"output_vectors": json.dumps({{"features": features}})}}
"""


@pytest.mark.parametrize("count", [4, 1])
def test_object_classifier_answers_each_feature_in_its_place(
    make_package: MakePackage, limits: HostLimits, count: int
) -> None:
    batch = np.stack([np.full((3, 8, 8), 10 * number, np.uint8) for number in range(1, count + 1)])
    masks = np.ones((count, 8, 8), np.uint8)
    batch[0, :, 3, 3], masks[0, 3, 3] = 99, 0
    with HostProcess(make_package(CLASSIFIER), limits=limits) as host:
        assert host.takes_batches
        assert host.configuration["batch_size"] == 4
        found = host.run("vectorize", batch, masks)
        assert [entry.label for entry in found] == [str(10 * number) for number in range(1, count + 1)]
        assert [entry.index for entry in found] == list(range(count))
        assert {entry.confidence_raw for entry in found} == {0.75}
        with pytest.raises(BadInputError, match="4-D"):
            host.submit("vectorize", batch[0])


def test_object_classifier_that_forgets_a_feature_is_refused(
    make_package: MakePackage, limits: HostLimits
) -> None:
    body = CLASSIFIER.replace("enumerate(batch)", "enumerate(batch[1:])")
    with (
        HostProcess(make_package(body), limits=limits) as host,
        pytest.raises(FunctionFailure, match="2 answers for 3 features"),
    ):
        host.run("vectorize", np.ones((3, 3, 8, 8), np.uint8))


def test_instances_with_holes_on_either_confidence_scale(
    make_package: MakePackage, limits: HostLimits
) -> None:
    body = f"""
    def getParameterInfo(self):
        return {RASTER}

    def getGeometryType(self):
        class Kinds: polygon = np.int32(4)
        return Kinds.polygon

    def vectorize(self, **pixelBlocks):
        def feature(oid, confidence):
            outer, hole = [[-3, -2.5], [20, 0], [9, 9.5]], [[1, 1], [2, 1], [2, 2], [1, 1]]
            attributes = {{"OID": oid, "Classvalue": 2, "Classname": "roof", "Confidence": confidence}}
            return {{"attributes": attributes, "geometry": {{"rings": [outer, hole]}}}}
        return {{"output_vectors": json.dumps({{"features": [feature(1, 87.5), feature(2, 0.5)]}})}}
    """
    with HostProcess(make_package(body), limits=limits) as host:
        found = host.run("vectorize", _pixels())
        assert host.geometry_type == 4
    assert [entry.confidence_raw for entry in found] == [87.5, 0.5]
    for entry in found:
        assert entry.class_name == "roof"
        assert entry.rings == [
            [(-3.0, -2.5), (20.0, 0.0), (9.0, 9.5)],
            [(1.0, 1.0), (2.0, 1.0), (2.0, 2.0)],
        ]


def test_points_are_points(make_package: MakePackage, limits: HostLimits) -> None:
    body = f"""
    def getParameterInfo(self):
        return {RASTER}

    def getFields(self):
        return {{"fields": [{{"name": "Class", "type": "esriFieldTypeString"}}]}}

    def getGeometryType(self):
        return 1

    def vectorize(self, **pixelBlocks):
        feature = {{"attributes": {{"Class": "roof"}}, "geometry": {{"x": -1.5, "y": 20}}}}
        return {{"output_vectors": {{"features": [feature]}}}}
    """
    with HostProcess(make_package(body), limits=limits) as host:
        assert host.geometry_type == 1
        assert host.fields == [{"name": "Class", "type": "esriFieldTypeString"}]
        (found,) = host.run("vectorize", _pixels())
    assert (found.kind, found.rings, found.confidence_raw) == ("point", [[(-1.5, 20.0)]], 1.0)
    with (
        HostProcess(make_package(body.replace("return 1", "return 4")), limits=limits) as host,
        pytest.raises(FunctionFailure, match="is a point, and getGeometryType announces a polygon"),
    ):
        host.run("vectorize", _pixels())


# -- the stand-in ------------------------------------------------------------------------------------------


def test_stand_in_offers_what_functions_touch(make_package: MakePackage, limits: HostLimits) -> None:
    body = """
    def initialize(self, **kwargs):
        from arcpy import env
        import arcpy as module
        assert module.env is env is arcpy.env
        env.gpuId = str(kwargs["device"])
        env.workspace = "elsewhere"
        assert env.cellSize is None and os.access(env.scratchFolder, os.W_OK)
        for say in (module.AddMessage, module.AddWarning, module.AddError):
            say("said")
        module.AddIDMessage("WARNING", 110, "x")
        module.SetProgressor("step", "working", 0, 10, 1)
        module.SetProgressorLabel("half"); module.SetProgressorPosition(5); module.ResetProgressor()
        try:
            raise module.ExecuteError("no")
        except module.ExecuteError:
            pass
        assert not hasattr(module, "da")
        module.CheckOutExtension("ImageAnalyst")
    """
    with pytest.raises(FunctionFailure, match=r"(?s)arcpy.CheckOutExtension is not there.*ERROR: said"):
        HostProcess(make_package(body), limits=limits).__enter__()


def test_function_cannot_move_itself_to_another_device(make_package: MakePackage, limits: HostLimits) -> None:
    body = """
    def initialize(self, **kwargs):
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        os.environ["CUDA_VISIBLE_DEVICES"] = "0"
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        os.environ.clear()
        os.environ["MINE"] = "yes"

    def getConfiguration(self, **scalars):
        return {"environment": {key: os.environ[key] for key in ("CUDA_VISIBLE_DEVICES", "MINE")}}
    """
    with HostProcess(make_package(body), limits=limits) as host:
        assert host.configuration["environment"] == {"CUDA_VISIBLE_DEVICES": "", "MINE": "yes"}


def test_configuration_that_is_json_in_disguise(make_package: MakePackage, limits: HostLimits) -> None:
    body = """
    def updateRasterInfo(self, **kwargs):
        colormap = (np.arange(2), np.zeros(2, "u1"))
        kwargs["output_info"].update(bandCount=1, noData=np.array([0]), colormap=colormap)
        kwargs["output_info"]["rasterAttributeTable"] = json.dumps({"features": []})
        return kwargs
    """
    with HostProcess(make_package(body), limits=limits) as host:
        assert host.output_info["noData"] == [0]
        json.dumps(host.output_info)
