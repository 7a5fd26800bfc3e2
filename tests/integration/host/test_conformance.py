"""Functions in every style that packages are written in run as they do in ArcGIS."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from tasks.errors import BadInputError
from tasks.host import Detection, HostLimits, HostProcess
from tasks.package import Package

MakePackage = Callable[..., Package]

THRESHOLD = """
def updateRasterInfo(self, **kwargs):
    kwargs["output_info"]["bandCount"] = 1
    kwargs["output_info"]["pixelType"] = "i4"
    kwargs["output_info"]["rasterAttributeTable"] = json.dumps({"features": []})
    self.raster_info = kwargs["raster_info"]
    return kwargs

def updatePixels(self, tlc, shape, props, **pixelBlocks):
    pixels, mask, p = pixelBlocks["raster_pixels"], pixelBlocks["raster_mask"], self.padding
    pixels[np.where(mask == 0)] = 0
    rows, cols = pixels.shape[1:]
    found = (pixels[:1] > 100).astype(props["pixelType"])
    return {"output_pixels": found[:, p : rows - p, p : cols - p]}
"""

BOXES = """
def getFields(self):
    return json.dumps({"fields": [{"name": "OID", "type": "esriFieldTypeOID"},
        {"name": "Class", "type": "esriFieldTypeString"},
        {"name": "Confidence", "type": "esriFieldTypeDouble"}]})

def getGeometryType(self):
    return 4

def vectorize(self, **pixelBlocks):
    brightest = float(pixelBlocks["raster_pixels"].max())
    ring = [[-2.5, -1.0], [3.0, -1.0], [3.0, 4.25], [-2.5, 4.25]]
    return {"output_vectors": json.dumps({"features": [{"attributes": {"OID": 1, "Class": "tree",
        "Confidence": brightest}, "geometry": {"rings": [ring]}}]})}
"""


def _pixels(bands: int = 3, rows: int = 12, cols: int = 12) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 255, (bands, rows, cols), dtype=np.uint8)


def test_raster_output_follows_pixels_mask_and_padding(make_package: MakePackage, limits: HostLimits) -> None:
    pixels = _pixels()
    mask = np.ones(pixels.shape, np.uint8)
    mask[:, :5] = 0
    with HostProcess(make_package(THRESHOLD), "CPU", {"padding": "2"}, limits=limits) as host:
        result = host.run("updatePixels", pixels, mask, shape=(8, 8))
        assert host.device == "cpu"
        assert host.configuration["padding"] == 2
        assert host.output_info["pixelType"] == "i4"
        assert host.operations == ("updatePixels",)
    expected = (np.where(mask == 0, 0, pixels)[:1, 2:-2, 2:-2] > 100).astype(np.int32)
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result, expected)
    assert pixels[:, :5].any(), "the function writes into its own copy, not into the caller's array"


def test_mask_of_one_plane_serves_all_bands(make_package: MakePackage, limits: HostLimits) -> None:
    pixels = _pixels(rows=8, cols=8)
    plane = np.ones((8, 8), np.uint8)
    plane[3] = 0
    seen_as_three = np.broadcast_to(plane, pixels.shape)
    with HostProcess(make_package(THRESHOLD), limits=limits) as host:
        results = [
            host.run("updatePixels", pixels, mask) for mask in (plane, seen_as_three, seen_as_three.copy())
        ]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    assert not results[0][:, 3].any()


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4", "f8"])
def test_pixels_arrive_in_their_own_dtype(make_package: MakePackage, limits: HostLimits, dtype: str) -> None:
    body = """
    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        return {"output_pixels": pixelBlocks["raster_pixels"][1:2]}
    """
    pixels = np.arange(3 * 8 * 8).reshape(3, 8, 8).astype(dtype)
    with HostProcess(make_package(body), limits=limits) as host:
        result = host.run("updatePixels", pixels[:, ::-1])
    assert result.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(result, pixels[1:2, ::-1])


def test_many_blocks_in_flight_come_back_each_to_its_ticket(
    make_package: MakePackage, limits: HostLimits
) -> None:
    body = """
    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        assert tlc[0] == float(pixelBlocks["raster_pixels"][0, 0, 0]), "another block's pixels"
        return {"output_pixels": pixelBlocks["raster_pixels"][:1].astype("i4") * 2}
    """
    sizes = [4, 40, 8, 120, 16, 3, 200]  # the ring has to grow, and to serve small blocks after large ones
    with HostProcess(make_package(body), limits=limits) as host:
        tickets = [
            host.submit("updatePixels", np.full((1, size, size), number, np.int16), tlc=(number, 0))
            for number, size in enumerate(sizes * 4)
        ]
        for number, ticket in reversed(list(enumerate(tickets))):
            result = host.result(ticket)
            size = sizes[number % len(sizes)]
            assert result.shape == (1, size, size)
            assert (result == number * 2).all()
        with pytest.raises(BadInputError):
            host.result(tickets[0])


def test_vector_output_keeps_fractional_and_outside_coordinates(
    make_package: MakePackage, limits: HostLimits
) -> None:
    with HostProcess(make_package(BOXES), limits=limits) as host:
        found = host.run("vectorize", np.full((3, 8, 8), 87, np.uint8))
        assert host.geometry_type == 4
        assert [entry["name"] for entry in host.fields] == ["OID", "Class", "Confidence"]
    assert found == [
        Detection(
            "tree",
            87.0,
            [[(-2.5, -1.0), (3.0, -1.0), (3.0, 4.25), (-2.5, 4.25)]],
            {"OID": 1, "Class": "tree", "Confidence": 87.0},
        )
    ]


def test_scores_are_offered_only_where_the_configuration_says_so(
    make_package: MakePackage, limits: HostLimits
) -> None:
    body = """
    def getConfiguration(self, **scalars):
        return {"padding": 0, "tx": 8, "ty": 8, "predict_scores": True, "number_of_scores": 2}

    def predict_scores(self, batch):
        first = batch[:, :1].astype("f8") / 255
        return np.concatenate([first, 1 - first], axis=1)
    """
    batch = np.stack([_pixels(), _pixels() // 2])
    with HostProcess(make_package(body), limits=limits) as host:
        assert host.offers_scores
        assert host.number_of_scores == 2
        scores = host.run("predict_scores", batch)
    assert scores.shape == (2, 2, 12, 12)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores[:, 0], batch[:, 0] / 255, rtol=1e-6)
    silent = body.replace('"predict_scores": True, "number_of_scores": 2', "")
    with HostProcess(make_package(silent), limits=limits) as host:
        assert not host.offers_scores
        with pytest.raises(BadInputError, match="does not offer predict_scores"):
            host.submit("predict_scores", batch)


def test_arguments_reach_the_function_as_text_or_numbers(
    make_package: MakePackage, limits: HostLimits
) -> None:
    body = """
    def getParameterInfo(self):
        self.json_info = True
        return (
            {"name": "raster", "dataType": "raster"},
            "a bare string, as in a template",
            {"name": "model", "dataType": "string"},
            {"name": "device", "dataType": "numeric"},
            {"name": "padding", "dataType": "GPLong", "value": 1},
            {"name": "threshold", "dataType": "GPDouble", "value": 0.5, "domain": [0.0, 1.0]},
            {"name": "test_time_augmentation", "dataType": "boolean", "value": False},
            {"name": "kind", "dataType": "GPString", "value": "fast", "domain": ("fast", "slow")},
        )

    def getConfiguration(self, **scalars):
        return {"seen": {key: [value, type(value).__name__] for key, value in scalars.items()}}
    """
    package = make_package(body)
    given = {"threshold": "0.25", "test_time_augmentation": "true"}
    with HostProcess(package, "CPU", given, limits=limits) as host:
        seen = host.configuration["seen"]
        assert [parameter.name for parameter in host.parameters] == [
            "padding",
            "threshold",
            "test_time_augmentation",
            "kind",
        ]
    assert seen == {
        "padding": [1, "int"],
        "threshold": ["0.25", "str"],
        "test_time_augmentation": ["True", "str"],
        "kind": ["fast", "str"],
        "model": [str(package.emd_path), "str"],
        "device": [-1, "int"],
    }
    with pytest.raises(BadInputError, match="padding, threshold, test_time_augmentation, kind"):
        HostProcess(package, "CPU", {"treshold": "0.25"}, limits=limits).__enter__()
    with pytest.raises(BadInputError, match="from 0 to 1"):
        HostProcess(package, "CPU", {"threshold": "25"}, limits=limits).__enter__()


def test_class_named_unlike_its_file_and_windows_path(make_package: MakePackage, limits: HostLimits) -> None:
    source = """
import numpy as np

class Helper:
    pass

class ObjectDetector:
    def initialize(self, model, device): pass
    def getParameterInfo(self): return [{"name": "raster", "dataType": "raster"}]
    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        return {"output_pixels": np.full((1,) + tuple(shape), 9, "u1")}
"""
    package = make_package(
        source="",
        files={"System/DeepLearning/DraftTemplate.py": source},
        definition={"InferenceFunction": ".\\system\\DeepLearning\\DraftTemplate.py"},
    )
    with HostProcess(package, limits=limits) as host:
        assert (host.run("updatePixels", _pixels()) == 9).all()


def test_siblings_are_imported_from_the_function_folder(
    make_package: MakePackage, limits: HostLimits
) -> None:
    body = """
    def initialize(self, **kwargs):
        sys.path.append(os.path.dirname(__file__))
        import util, wire, tasks
        self.answer = util.ANSWER + wire.ANSWER + tasks.ANSWER

    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        return {"output_pixels": np.full((1,) + shape, self.answer, "u1")}
    """
    # Also names that our own files bear.
    package = make_package(
        body, files={"util.py": "ANSWER = 40\n", "wire.py": "ANSWER = 2\n", "tasks.py": "ANSWER = 100\n"}
    )
    with HostProcess(package, limits=limits) as host:
        assert (host.run("updatePixels", _pixels()) == 142).all()


def test_arcpy_is_there_without_an_import_also_in_siblings(
    make_package: MakePackage, limits: HostLimits
) -> None:
    body = """
    def initialize(self, **kwargs):
        assert arcpy.env.processorType == "CPU", arcpy.env.processorType
        arcpy.env.processorType = "CPU"
        arcpy.env.gpuId = kwargs["device"]
        arcpy.AddWarning("hello from arcpy")
        import other

    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        return {"output_pixels": np.full((1,) + shape, -arcpy.env.gpuId, "u1")}
    """
    package = make_package(
        body, files={"other.py": "assert arcpy.env.autoCancelling is False\nimport arcpy\n"}
    )
    with HostProcess(package, limits=limits) as host:
        assert (host.run("updatePixels", _pixels()) == 1).all()
        assert "WARNING: hello from arcpy" in host.output_tail()


def test_call_order_and_lazy_loading(make_package: MakePackage, limits: HostLimits) -> None:
    body = """
    calls = []

    def isLicensed(self, **kwargs):
        self.calls.append("isLicensed")
        return {"okToRun": True}

    def initialize(self, **kwargs):
        self.calls.append("initialize")
        self.definition = json.load(open(kwargs["model"]))
        assert type(kwargs["device"]) is int

    def getParameterInfo(self):
        self.calls.append("getParameterInfo")
        self.definition["Classes"]
        return [{"name": "raster", "dataType": "raster"}]

    def getConfiguration(self, **scalars):
        self.calls.append("getConfiguration")
        self.weights = open(os.path.join(os.path.dirname(scalars["model"]), "weights.txt")).read()
        return {"extractBands": (2, 1, 0)}

    def updateRasterInfo(self, **kwargs):
        self.calls.append("updateRasterInfo")
        assert kwargs["model"] and kwargs["device"] == -1
        kwargs["output_info"].update(calls=tuple(self.calls), bandCount=1)
        return kwargs

    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        if not hasattr(self, "net"):
            self.net = int(self.weights)
        return {"output_pixels": np.full(shape, self.net, "u1"), "output_mask": np.eye(shape[0])}
    """
    with HostProcess(make_package(body, files={"weights.txt": "17"}), limits=limits) as host:
        result = host.run("updatePixels", _pixels())
        assert host.output_info["calls"] == [
            "isLicensed",
            "initialize",
            "getParameterInfo",
            "getConfiguration",
            "updateRasterInfo",
        ]
        assert host.configuration["extractBands"] == [2, 1, 0]
    # A two-dimensional answer is one band; the function's own mask makes NoData.
    np.testing.assert_array_equal(result, np.eye(12, dtype=np.uint8)[None] * 17)


def test_rasters_parameter_names_the_blocks(make_package: MakePackage, limits: HostLimits) -> None:
    body = """
    def getParameterInfo(self):
        return [{"name": "image", "dataType": "raster"}, {"name": "padding", "value": 0}]

    def vectorize(self, tlc, shape, props, **pixelBlocks):
        assert sorted(pixelBlocks) == ["image_mask", "image_pixels"], sorted(pixelBlocks)
        assert props["extent"] == (1.0, 2.0, 3.0, 4.0)
        assert (tlc, shape) == ((5, 6), (8, 8))
        return {"output_vectors": {"features": []}}
    """
    with HostProcess(make_package(body), limits=limits) as host:
        props = {"extent": (1.0, 2.0, 3.0, 4.0)}
        assert host.run("vectorize", _pixels(), tlc=(5, 6), shape=(8, 8), props=props) == []


def test_prints_cannot_break_the_protocol(make_package: MakePackage, limits: HostLimits) -> None:
    body = """
    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        print("x" * 3_000_000)
        os.write(1, b"\\x00\\x00\\x00\\x04null")
        print("the end", file=sys.stderr)
        return {"output_pixels": np.zeros((1,) + shape, "u1")}
    """
    with HostProcess(make_package(body), limits=limits) as host:
        for _ in range(3):
            assert not host.run("updatePixels", _pixels()).any()
        tail = host.output_tail()
    assert tail.endswith("the end")
    assert len(tail) <= 16 * 1024


def test_two_packages_with_siblings_of_the_same_name_run_side_by_side(
    make_package: MakePackage, limits: HostLimits
) -> None:
    body = """
    def initialize(self, **kwargs):
        import util
        self.answer = util.ANSWER

    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        return {"output_pixels": np.full((1,) + shape, self.answer, "u1")}
    """
    first, second = (make_package(body, files={"util.py": f"ANSWER = {number}\n"}) for number in (1, 2))
    with HostProcess(first, limits=limits) as one, HostProcess(second, limits=limits) as two:
        assert (one.run("updatePixels", _pixels()) == 1).all()
        assert (two.run("updatePixels", _pixels()) == 2).all()


def test_configuration_survives_numpy_and_unknown_values(
    make_package: MakePackage, limits: HostLimits
) -> None:
    body = """
    def getConfiguration(self, **scalars):
        return {"extractBands": np.array([0, 2]), "tx": np.int64(8), "dataRange": (0, 255.0), "odd": object()}
    """
    with HostProcess(make_package(body), limits=limits) as host:
        assert host.configuration["extractBands"] == [0, 2]
        assert host.configuration["tx"] == 8
        json.dumps(host.configuration)
