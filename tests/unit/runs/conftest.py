import pytest

from support.predict_runs import predict, read


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    status, out, err = predict(f"--writer.folder={folder}")
    assert status == 0, err
    return folder, out, read(folder)
