"""Model repositories: their layout and config, and that the model inside answers as the variant does."""

import json

import numpy as np
import pytest
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

import optkit
from optkit.commands.export import EXPORTS
from optkit.core.artifact import save_artifact
from optkit.core.compat.openvino import core
from optkit.core.errors import UserError
from optkit.core.variant import Variant
from optkit.deploy.formats import FORMATS, OF_LANGUAGE
from optkit.deploy.repository import Enum, export_repository, pbtxt
from optkit.deploy.target import list_files

F = descriptor_pb2.FieldDescriptorProto
# the part of Triton's model_config.proto that is written, with its numbers of fields
MESSAGES = {
    "Reshape": [("shape", 1, "int64", True)],
    "ModelInput": [("name", 1, "string", False), ("data_type", 2, "DataType", False), ("dims", 4, "int64", True), ("reshape", 5, "Reshape", False)],
    "ModelOutput": [("name", 1, "string", False), ("data_type", 2, "DataType", False), ("dims", 3, "int64", True), ("reshape", 5, "Reshape", False)],
    "Batching": [("preferred_batch_size", 1, "int32", True), ("max_queue_delay_microseconds", 2, "uint64", False)],
    "Group": [("name", 1, "string", False), ("kind", 4, "Kind", False), ("count", 2, "int32", False)],
    "Parameter": [("string_value", 1, "string", False)],
    "Entry": [("key", 1, "string", False), ("value", 2, "Parameter", False)],
    "ModelConfig": [
        ("name", 1, "string", False), ("max_batch_size", 4, "int32", False), ("input", 5, "ModelInput", True), ("output", 6, "ModelOutput", True),
        ("instance_group", 7, "Group", True), ("dynamic_batching", 11, "Batching", False), ("parameters", 14, "Entry", True), ("backend", 17, "string", False),
    ],
}  # fmt: skip
ENUMS = {
    "DataType": {"TYPE_INVALID": 0, "TYPE_BOOL": 1, "TYPE_INT64": 9, "TYPE_FP32": 11},
    "Kind": {"KIND_AUTO": 0, "KIND_CPU": 2},
}


def model_config(text):
    """Reads a config as protocol buffers do, by a description of its own."""
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="triton", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for value, number in values.items():
            enum.value.add(name=value, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            label = F.LABEL_REPEATED if repeated else F.LABEL_OPTIONAL
            made = message.field.add(name=field, number=number, label=label)
            if kind in MESSAGES:
                made.type, made.type_name = F.TYPE_MESSAGE, f".triton.{kind}"
            elif kind in ENUMS:
                made.type, made.type_name = F.TYPE_ENUM, f".triton.{kind}"
            else:
                made.type = getattr(F, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = message_factory.GetMessageClass(pool.FindMessageTypeByName("triton.ModelConfig"))()
    return text_format.Parse(text, found)


@pytest.fixture
def variant(mlp, tmp_path):
    model = {"target": "optkit.models.MLP", "params": {"input_shape": [1, 8, 8], "widths": [32]}}
    folder = tmp_path / "1-train"
    folder.mkdir()
    save_artifact(folder, Variant("v1", None, frozenset({"float"}), model), mlp, (torch.zeros(2, 1, 8, 8),))
    return folder


NUMBERS = {"max_batch": 8, "max_wait_ms": 2.5, "instances": 2, "threads": 3}


@pytest.mark.parametrize(
    ("engine", "files"),
    [("openvino", ["model.bin", "model.xml"]), ("onnxruntime", ["model.onnx"])],
)
def test_tritons_repository(variant, tmp_path, mlp, engine, files):
    to = tmp_path / "models"
    export_repository(variant, to, server="triton", engine=engine, **NUMBERS)
    inside = [f"1-train/1/{name}" for name in files]
    assert list_files(to) == [*inside, "1-train/config.pbtxt", "preprocess.json", "export.json"]
    config = model_config((to / "1-train/config.pbtxt").read_text())
    assert (config.name, config.backend, config.max_batch_size) == ("1-train", engine, 8)
    assert config.dynamic_batching.max_queue_delay_microseconds == 2500
    (group,) = config.instance_group
    assert (group.count, ENUMS["Kind"]["KIND_CPU"]) == (2, group.kind)
    given = {entry.key: entry.value.string_value for entry in config.parameters}
    assert "3" in given.values()
    (x,) = config.input
    (y,) = config.output
    assert (list(x.dims), list(y.dims)) == ([1, 8, 8], [10])
    assert {x.data_type, y.data_type} == {ENUMS["DataType"]["TYPE_FP32"]}
    images = torch.rand(5, 1, 8, 8)
    if engine == "openvino":
        assert given == {"INFERENCE_NUM_THREADS": "3", "INFERENCE_PRECISION_HINT": "f32"}
        hint = {"INFERENCE_PRECISION_HINT": given["INFERENCE_PRECISION_HINT"]}  # as the backend passes it on
        compiled = core().compile_model(to / "1-train/1/model.xml", "CPU", hint)
        answer = compiled({x.name: images.numpy()})[y.name]
    else:
        import onnxruntime

        assert given == {"intra_op_thread_count": "3"}
        session = onnxruntime.InferenceSession(to / "1-train/1/model.onnx")
        (answer,) = session.run([y.name], {x.name: images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(answer, mlp(images), rtol=1e-4, atol=1e-5)


def test_the_repository_of_openvino_model_server_batches_and_answers_as_the_model(variant, tmp_path, mlp):
    to = tmp_path / "models"
    export_repository(variant, to, server="ovms", engine="openvino", **NUMBERS)
    assert list_files(to) == [
        "1-train/1/model.bin", "1-train/1/model.xml", "config.json", "preprocess.json", "export.json",
    ]  # fmt: skip
    (entry,) = json.loads((to / "config.json").read_text())["model_config_list"]
    config = entry["config"]
    assert (config["name"], config["base_path"], config["batch_size"]) == ("1-train", "1-train", "1")
    options = config["plugin_config"]
    assert (options["AUTO_BATCH_TIMEOUT"], options["NUM_STREAMS"], options["INFERENCE_NUM_THREADS"]) == (3, "2", 6)
    # what the server does with it: reads the model, sets the batch, compiles for the device with these options
    model = core().read_model(to / config["base_path"] / "1/model.xml")
    model.reshape({0: [1, 1, 8, 8]})
    compiled = core().compile_model(model, config["target_device"], options)
    assert config["target_device"] == "BATCH:CPU(8)"
    images = torch.rand(9, 1, 8, 8)
    requests = [compiled.create_infer_request() for _ in images]
    for request, image in zip(requests, images, strict=True):
        request.start_async({0: image[None].numpy()})
    with torch.no_grad():
        for request, wanted in zip(requests, mlp(images), strict=True):
            request.wait()
            np.testing.assert_allclose(request.get_output_tensor().data[0], wanted, rtol=1e-4, atol=1e-5)


def test_without_batches_there_is_no_batching_device(variant, tmp_path):
    export_repository(variant, tmp_path / "models", server="ovms", engine="openvino")
    (entry,) = json.loads((tmp_path / "models/config.json").read_text())["model_config_list"]
    assert entry["config"]["target_device"] == "CPU"
    assert "AUTO_BATCH_TIMEOUT" not in entry["config"]["plugin_config"]


@pytest.mark.parametrize(
    ("server", "engine", "message"),
    [
        ("ovms", "onnxruntime", r"engine: ovms does not run the files of onnxruntime .--engine openvino"),
        ("triton", "inductor", r"engine: triton does not run the files of inductor .--engine onnxruntime or openvino"),
        ("tritn", "openvino", "server: .*tritn"),
    ],
)
def test_servers_take_the_files_that_they_run(variant, tmp_path, server, engine, message):
    with pytest.raises(UserError, match=message):
        export_repository(variant, tmp_path / "models", server=server, engine=engine)
    assert not (tmp_path / "models").exists()


def test_the_text_format():
    text = pbtxt({"a": 'x"\n', "b": [1, 2], "c": {"d": Enum("KIND")}, "e": []})
    assert text == 'a: "x\\"\\n"\nb: 1\nb: 2\nc {\n  d: KIND\n}\n'


def test_the_command(variant, tmp_path, command_here):
    to = tmp_path / "models"
    asked = [variant, "--engine", "openvino", "--to", to, "--max-batch", "4"]
    refused = command_here("export", *asked)
    assert str(refused.exception) == "--max-batch: is only for --repository (add --repository ovms or triton)"
    done = command_here("export", *asked, "--repository", "triton", "--max-wait", "1ms")
    assert done.exit_code == 0, done.exception
    config = model_config((to / "1-train/config.pbtxt").read_text())
    assert (config.max_batch_size, config.dynamic_batching.max_queue_delay_microseconds) == (4, 1000)
    assert optkit.deploy.export_repository is export_repository


def test_the_command_offers_every_format():
    assert set(EXPORTS) == {*FORMATS, *OF_LANGUAGE}
