import torch

from psgd_lm.throughput import cuda_peak, device_peak


def test_known_devices_have_their_data_sheets_peak():
    half = cuda_peak("NVIDIA A100-SXM4-80GB", torch.bfloat16)
    single = cuda_peak("NVIDIA A100-SXM4-80GB", torch.float32)
    assert (half.operations, single.operations) == (312e12, 19.5e12)
    assert "data sheet" in half.source


def test_other_devices_have_none():
    # A part of a device and a smaller sister have names that begin alike.
    for name in ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "NVIDIA A1000", "Teapot"):
        assert cuda_peak(name, torch.bfloat16) is None
    assert device_peak(torch.device("meta"), torch.float32) is None


def test_a_cpu_is_measured_once():
    first = device_peak(torch.device("cpu"), torch.float32)
    assert "measured" in first.source
    assert 1e8 < first.operations < 1e14
    assert device_peak(torch.device("cpu"), torch.float32) == first
