import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_generated_code_is_that_of_the_proto_file(tmp_path):
    subprocess.run([ROOT / "tools/generate", tmp_path], env=os.environ | {"PYTHON": sys.executable}, check=True)
    made = {path.name: path.read_bytes() for path in (tmp_path / "flashsale/grpc").iterdir()}
    assert made == {path.name: path.read_bytes() for path in (ROOT / "flashsale/grpc").glob("orders_pb2*")}
    assert set(made) == {"orders_pb2.py", "orders_pb2.pyi", "orders_pb2_grpc.py"}
