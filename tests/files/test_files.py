"""Plain detector files are opened, or refused with a reason; results are written as NeXus-style HDF5."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
import tifffile
import xarray as xr
from fabio.cbfimage import CbfImage
from fabio.edfimage import EdfImage

from bluesky_symdenoise import __version__
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files import FrameStack, NexusWriter, open_frames
from bluesky_symdenoise.files.rows import Hdf5Rows

SHAPE = (6, 20, 30)
LZ4 = hdf5plugin.Bitshuffle(cname="lz4")
DETECTOR = "entry/instrument/detector"


@pytest.fixture
def counts() -> np.ndarray:
    frames = np.random.default_rng(1).poisson(3, SHAPE).astype(np.uint16)
    frames.flags.writeable = False
    return frames


@pytest.fixture
def eiger(tmp_path: Path, counts: np.ndarray) -> Path:
    """Master file as an Eiger writes it: two linked data files, pixel mask, beam centre."""
    for i, part in enumerate((counts[:4], counts[4:]), start=1):
        with h5py.File(tmp_path / f"run_1_data_{i:06d}.h5", "w") as file:
            file.create_dataset("entry/data/data", data=part, chunks=(1, *SHAPE[1:]), **LZ4)
    master = tmp_path / "run_1_master.h5"
    with h5py.File(master, "w") as file:
        for i in (1, 2):
            file[f"entry/data/data_{i:06d}"] = h5py.ExternalLink(f"run_1_data_{i:06d}.h5", "/entry/data/data")
        pixel_mask = np.zeros(SHAPE[1:], np.uint32)
        pixel_mask[3, 4] = 2
        file[f"{DETECTOR}/detectorSpecific/pixel_mask"] = pixel_mask
        file[f"{DETECTOR}/detectorSpecific/flatfield"] = np.ones(SHAPE[1:], np.float32)
        for axis, value in (("x", 14.5), ("y", 9.25)):
            file[f"{DETECTOR}/beam_center_{axis}"] = value
            file[f"{DETECTOR}/beam_center_{axis}"].attrs["units"] = "pixel"
    return master


def write_h5(path: Path, name: str, data: Any, **attrs: Any) -> Path:
    with h5py.File(path, "w") as file:
        file[name] = data
        file.attrs.update(attrs)
    return path


def write_edf(path: Path, frames: np.ndarray) -> Path:
    image = EdfImage(data=frames[0])
    for frame in frames[1:]:
        image.append_frame(data=frame)
    image.write(str(path))
    return path


def write_cbf(path: Path, frame: np.ndarray) -> Path:
    CbfImage(data=frame.astype(np.int32)).write(str(path))
    return path


def write_npy(path: Path, frames: np.ndarray) -> Path:
    np.save(path, frames)
    return path


def write_tiff(path: Path, frames: np.ndarray) -> Path:
    tifffile.imwrite(path, frames, photometric="minisblack")
    return path


def check(stack: FrameStack, expected: np.ndarray) -> None:
    """Every way of indexing gives what an array would give."""
    assert stack.shape == expected.shape
    assert len(stack) == len(expected)
    n = len(expected)
    for i in (*range(n), -1, np.int64(0)):
        np.testing.assert_array_equal(stack[i], expected[i])
        assert stack[i].dtype == stack.dtype
    for piece in (slice(None), slice(1, n - 1), slice(n - 1, 1), slice(None, None, -2), slice(n, None)):
        np.testing.assert_array_equal(stack[piece], expected[piece])
    np.testing.assert_array_equal(np.array(list(stack)), expected)
    with pytest.raises(IndexError):
        stack[n]


# ---------------------------------------------------------------- formats


def test_counts_with_mask_centre_and_symmetry(tmp_path: Path, counts: np.ndarray) -> None:
    mask = np.zeros(SHAPE[1:], bool)
    mask[2, 3] = True
    path = write_h5(tmp_path / "a.h5", "counts", counts, beam_center=[9.5, 14.25], symmetry="2mm")
    with h5py.File(path, "a") as file:
        file["mask"] = mask
    with open_frames(path) as stack:
        check(stack, counts)
        np.testing.assert_array_equal(stack.mask, mask)
        assert (stack.beam_center, stack.symmetry) == ((9.5, 14.25), "2mm")
        assert stack.sources == (path,)
        assert stack.dtype == np.uint16


def test_a_file_without_metadata_has_no_mask_centre_or_symmetry(tmp_path: Path, counts: np.ndarray) -> None:
    with open_frames(write_h5(tmp_path / "a.h5", "anything/at/all", counts)) as stack:
        check(stack, counts)
        assert (stack.mask, stack.beam_center, stack.symmetry) == (None, None, None)


@pytest.mark.parametrize("shape", [SHAPE[1:], (1, *SHAPE[1:]), (6, 1, *SHAPE[1:])])
def test_single_frames_and_area_detector_rank_four(tmp_path: Path, counts: np.ndarray, shape: tuple[int, ...]) -> None:
    data = np.resize(counts, shape)
    with open_frames(write_h5(tmp_path / "a.h5", "entry/data/data", data)) as stack:
        check(stack, data.reshape(-1, *SHAPE[1:]))


def test_eiger_master_reads_linked_compressed_data(eiger: Path, counts: np.ndarray) -> None:
    with open_frames(eiger) as stack:
        check(stack, counts)
        assert stack.mask is not None
        assert np.argwhere(stack.mask).tolist() == [[3, 4]]
        assert stack.beam_center == (9.25, 14.5)  # (y, x), though NeXus says x first
        assert [path.name for path in stack.sources] == [
            "run_1_master.h5",
            "run_1_data_000001.h5",
            "run_1_data_000002.h5",
        ]


@pytest.mark.parametrize(("center", "units"), [((0, 0), "pixel"), ((0.1, 0.2), "m")])
def test_beam_centre_that_is_unset_or_not_in_pixels_is_none(
    tmp_path: Path, counts: np.ndarray, center: tuple[float, float], units: str
) -> None:
    path = write_h5(tmp_path / "a.nxs", "entry/data/data", counts)
    with h5py.File(path, "a") as file:
        for axis, value in zip("xy", center, strict=True):
            file[f"{DETECTOR}/beam_center_{axis}"] = value
            file[f"{DETECTOR}/beam_center_{axis}"].attrs["units"] = units
    with open_frames(path) as stack:
        assert stack.beam_center is None


def virtual_master(path: Path, data_file: str) -> Path:
    layout = h5py.VirtualLayout(SHAPE, np.uint16)
    layout[:4] = h5py.VirtualSource(data_file, "entry/data/data", (4, *SHAPE[1:]))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("entry/data/data", layout)
    return path


def test_virtual_dataset_reads_its_sources(eiger: Path, counts: np.ndarray) -> None:
    path = virtual_master(eiger.with_name("vds.h5"), "run_1_data_000001.h5")
    with open_frames(path) as stack:
        np.testing.assert_array_equal(stack[:4], counts[:4])
        assert stack.sources == (path, eiger.with_name("run_1_data_000001.h5"))


def test_virtual_dataset_without_its_source_is_refused_and_not_read_as_zeros(tmp_path: Path) -> None:
    path = virtual_master(tmp_path / "vds.h5", "gone.h5")
    with h5py.File(path) as file:
        assert not file["entry/data/data"][0].any()  # what HDF5 itself does
    with pytest.raises(SymDenoiseError, match=r"'gone\.h5' with its frames is missing"):
        open_frames(path)


def test_master_without_its_first_data_file_is_refused_and_says_what_can_be_read(
    eiger: Path, counts: np.ndarray
) -> None:
    eiger.with_name("run_1_data_000001.h5").unlink()
    with pytest.raises(
        SymDenoiseError,
        match=r"'run_1_data_000001\.h5' cannot be opened.*name those that are there: .*::(.*data_000002)",
    ) as refused:
        open_frames(eiger)
    with open_frames(f"{eiger}::{str(refused.value).rpartition('::')[2]}") as stack:
        check(stack, counts[4:])


def test_master_of_an_aborted_run_gives_the_frames_that_are_there(
    eiger: Path, counts: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    eiger.with_name("run_1_data_000002.h5").unlink()
    with open_frames(eiger) as stack:
        check(stack, counts[:4])
    assert "only the frames of data_000001 are read; the linked file 'run_1_data_000002.h5'" in caplog.text


def test_frames_behind_links_are_found_and_small_arrays_are_no_frames(tmp_path: Path, counts: np.ndarray) -> None:
    """As NeXus files of a beamline link to those of the detector, from two places."""
    write_h5(tmp_path / "detector.hdf", "entry/instrument/detector/data", counts)
    with h5py.File(tmp_path / "scan.nxs", "w") as file:
        file["entry1/sample/orientation_matrix"] = np.eye(3)[np.newaxis]
        file["entry1/instrument/pil/data"] = h5py.ExternalLink("detector.hdf", "/entry/instrument/detector/data")
        file["entry1/pil/data"] = h5py.SoftLink("/entry1/instrument/pil/data")
        file["entry1/self"] = h5py.SoftLink("/entry1")
    with open_frames(tmp_path / "scan.nxs") as stack:
        check(stack, counts)
        assert [path.name for path in stack.sources] == ["scan.nxs", "detector.hdf"]
    (tmp_path / "detector.hdf").unlink()
    with pytest.raises(SymDenoiseError, match=r"no dataset looks like frames, and the linked file 'detector\.hdf'"):
        open_frames(tmp_path / "scan.nxs")


def modules(folder: Path, counts: np.ndarray, names: tuple[str, str]) -> Path:
    """A virtual dataset whose upper and lower halves are in two files."""
    height = SHAPE[1] // 2
    layout = h5py.VirtualLayout((SHAPE[0], 2 * height, SHAPE[2]), np.uint16)
    for number, name in enumerate(names):
        rows = slice(number * height, (number + 1) * height)
        layout[:, rows] = h5py.VirtualSource(name, "data", (SHAPE[0], height, SHAPE[2]))
        write_h5(folder / name, "data", counts[:, rows])
    with h5py.File(folder / "virtual.h5", "w") as file:
        file.create_virtual_dataset("data", layout)
    return folder / "virtual.h5"


def test_a_module_whose_file_is_missing_is_masked_and_named(
    tmp_path: Path, counts: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    path = modules(tmp_path, counts, ("upper.h5", "lower.h5"))
    with open_frames(path) as stack:
        assert stack.mask is None
    (tmp_path / "lower.h5").unlink()
    with open_frames(path) as stack:
        height = SHAPE[1] // 2
        assert stack.mask is not None
        assert stack.mask[height:].all()
        assert not stack.mask[:height].any()
        np.testing.assert_array_equal(stack[0][:height], counts[0, :height])
    assert "'lower.h5' is missing; the pixels that it holds are masked" in caplog.text
    (tmp_path / "upper.h5").unlink()
    with pytest.raises(SymDenoiseError, match="is missing; keep the data files"):
        open_frames(path)


@pytest.mark.parametrize("chain", ["external", "virtual"])
def test_a_chain_of_links_is_followed_to_its_end(tmp_path: Path, counts: np.ndarray, chain: str) -> None:
    """A virtual dataset, whose source is a link or again virtual, whose file is gone: never zeros."""
    write_h5(tmp_path / "end.h5", "data", counts)
    with h5py.File(tmp_path / "middle.h5", "w") as file:
        if chain == "external":
            file["data"] = h5py.ExternalLink("end.h5", "data")
        else:
            layout = h5py.VirtualLayout(SHAPE, np.uint16)
            layout[:] = h5py.VirtualSource("end.h5", "data", SHAPE)
            file.create_virtual_dataset("data", layout)
    layout = h5py.VirtualLayout(SHAPE, np.uint16)
    layout[:] = h5py.VirtualSource("middle.h5", "data", SHAPE)
    with h5py.File(tmp_path / "vds.h5", "w") as file:
        file.create_virtual_dataset("frames", layout)
    with h5py.File(tmp_path / "top.h5", "w") as file:
        file["data"] = h5py.ExternalLink("vds.h5", "frames")
    rows = Hdf5Rows(tmp_path / "top.h5", "data", frames=1, patience=0.1)
    with open_frames(tmp_path / "top.h5") as stack:
        check(stack, counts)
        assert {path.name for path in stack.sources} == {"top.h5", "vds.h5", "middle.h5", "end.h5"}
    np.testing.assert_array_equal(rows.read(2).squeeze(), counts[2])
    (tmp_path / "end.h5").unlink()
    with pytest.raises(SymDenoiseError, match=r"'end\.h5' with its frames is missing"):
        open_frames(tmp_path / "top.h5")
    with pytest.raises(SymDenoiseError, match=r"'end\.h5' with its pixels is missing"):
        rows.read(2)


@pytest.mark.parametrize(
    ("units", "pixel_units", "expected"),
    [
        ("pixel", "m", (15.48, 18.92)),
        ("mm", "mm", (90.0, 110.0)),
        ("m", "um", (90e3, 110e3)),
        ("", "mm", None),
        ("mm", "", None),
    ],
)
def test_a_beam_centre_has_a_unit(
    tmp_path: Path,
    counts: np.ndarray,
    units: str,
    pixel_units: str,
    expected: tuple[float, float] | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Lengths are divided by the size of a pixel; what has no unit is not used, and said."""
    path = write_h5(tmp_path / "a.nxs", "entry/data/data", counts)
    size = {"um": 172.0, "m": 172e-6}.get(pixel_units, 0.172)
    with h5py.File(path, "a") as file:
        for axis, value in (("y", 15.48), ("x", 18.92)):
            file[f"{DETECTOR}/beam_center_{axis}"] = [value]
            file[f"{DETECTOR}/{axis}_pixel_size"] = [size]
            for name, unit in ((f"beam_center_{axis}", units), (f"{axis}_pixel_size", pixel_units)):
                if unit:
                    file[f"{DETECTOR}/{name}"].attrs["units"] = unit
    with open_frames(path) as stack:
        assert stack.beam_center == (None if expected is None else pytest.approx(expected))
    assert ("its unit is not known" in caplog.text) == (expected is None)


def test_master_and_its_data_files_together_are_refused(eiger: Path) -> None:
    with pytest.raises(SymDenoiseError, match="read twice"):
        open_frames(f"{eiger.parent}/run_1_*.h5")


@pytest.mark.process
def test_file_that_another_process_is_still_writing_opens(tmp_path: Path, counts: np.ndarray) -> None:
    np.save(tmp_path / "counts.npy", counts)
    writer = (
        "import h5py, numpy as np\n"
        "counts = np.load('counts.npy')\n"
        "file = h5py.File('live.h5', 'w', libver='v110')\n"
        "file.create_dataset('counts', data=counts, chunks=(1, 20, 30), maxshape=(None, 20, 30))\n"
        "file.swmr_mode = True\n"
        "print('writing', flush=True)\n"
        "input()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", writer], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        with pytest.raises(OSError, match="already open for write"):
            h5py.File(tmp_path / "live.h5", "r")
        with open_frames(tmp_path / "live.h5") as stack:
            check(stack, counts)
        process.communicate("done\n")


def test_file_that_the_user_has_open_can_be_read_too(tmp_path: Path, counts: np.ndarray) -> None:
    path = write_h5(tmp_path / "a.h5", "counts", counts)
    with h5py.File(path) as file, open_frames(path) as stack:
        np.testing.assert_array_equal(stack[:], file["counts"])
    with h5py.File(path, swmr=True) as file, open_frames(path) as stack:
        np.testing.assert_array_equal(stack[:], file["counts"])


@pytest.mark.parametrize(("name", "write"), [("a.tif", write_tiff), ("a.edf", write_edf), ("a.npy", write_npy)])
def test_multi_frame_files(
    tmp_path: Path, counts: np.ndarray, name: str, write: Callable[[Path, np.ndarray], Path]
) -> None:
    with open_frames(write(tmp_path / name, counts)) as stack:
        check(stack, counts)
        assert stack.dtype == np.uint16
    with open_frames(write(tmp_path / f"single_{name}", counts[:1])) as stack:
        check(stack, counts[:1])


def test_tiff_whose_one_page_stands_for_all_frames(tmp_path: Path, counts: np.ndarray) -> None:
    """ImageJ writes stacks above 4 GB like this."""
    tifffile.imwrite(tmp_path / "big.tif", counts, imagej=True, truncate=True)
    with open_frames(tmp_path / "big.tif") as stack:
        check(stack, counts)


def test_big_endian_pixels_come_in_native_order(tmp_path: Path, counts: np.ndarray) -> None:
    with open_frames(write_npy(tmp_path / "a.npy", counts.astype(">u2"))) as stack:
        check(stack, counts)
        assert stack[0].dtype.isnative


def test_cbf_series_is_read_in_natural_order(tmp_path: Path, counts: np.ndarray) -> None:
    names = ["frame_10.cbf", "frame_2.cbf", "frame_1.cbf", "frame_100.cbf"]
    for name, frame in zip(names, counts, strict=False):
        write_cbf(tmp_path / name, frame)
    expected = counts[[2, 1, 0, 3]]
    with open_frames(f"{tmp_path}/frame_*.cbf") as stack:
        check(stack, expected)
        assert stack.dtype == np.int32
    with open_frames([tmp_path / name for name in names]) as stack:
        check(stack, expected)


def test_files_with_many_frames_are_joined(tmp_path: Path, counts: np.ndarray) -> None:
    write_tiff(tmp_path / "s1.tif", counts[:2])
    write_edf(tmp_path / "s2.edf", counts[2:5].astype(np.int32))
    write_npy(tmp_path / "s3.npy", counts[5])
    with open_frames([tmp_path / "s3.npy", f"{tmp_path}/*.edf", f"{tmp_path}/*.tif"]) as stack:
        check(stack, counts)
        assert stack.dtype == np.int32


def test_masks_are_joined_and_centres_must_agree(tmp_path: Path, counts: np.ndarray) -> None:
    for i, center in enumerate(([9.0, 14.0], [9.0, 14.0], [9.0, 15.0])):
        path = write_h5(tmp_path / f"{i}.h5", "counts", counts, beam_center=center)
        with h5py.File(path, "a") as file:
            file["mask"] = np.arange(SHAPE[1] * SHAPE[2]).reshape(SHAPE[1:]) == i
    with open_frames(f"{tmp_path}/[01].h5") as stack:
        assert stack.mask is not None
        assert np.flatnonzero(stack.mask).tolist() == [0, 1]
        assert stack.beam_center == (9.0, 14.0)
    with pytest.raises(SymDenoiseError, match="must agree"):
        open_frames(f"{tmp_path}/*.h5")


# ---------------------------------------------------------------- which dataset


def test_two_candidates_are_listed_and_one_can_be_chosen(tmp_path: Path, counts: np.ndarray) -> None:
    path = write_h5(tmp_path / "two.h5", "shape0/counts", counts)
    with h5py.File(path, "a") as file:
        file["shape1/counts"] = counts[:, :5]
        file["shape0/mask"] = np.ones(SHAPE[1:], bool)
        file["shape0"].attrs["symmetry"] = "1"
        file["temperature"] = np.arange(6.0)
    with pytest.raises(SymDenoiseError, match=r"choose one: .*::shape0/counts .*::shape1/counts [^:]*$"):
        open_frames(path)
    with open_frames(f"{path}::shape0/counts") as stack:
        check(stack, counts)
        assert stack.mask is not None
        assert stack.symmetry == "1"
    with open_frames(f"{tmp_path}/t*.h5::shape1/counts") as stack:
        check(stack, counts[:, :5])
        assert stack.mask is None
    with pytest.raises(SymDenoiseError, match=r"no such dataset; choose one: .*shape0/counts"):
        open_frames(f"{path}::shape2/counts")


# ---------------------------------------------------------------- laziness


def test_one_frame_of_a_huge_file_is_read_without_the_rest(tmp_path: Path) -> None:
    """200 000 frames of 1 Mpixel, 400 GB if they were read."""
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        data = file.create_dataset("counts", (200_000, 1024, 1024), "u2", chunks=(1, 1024, 1024), **LZ4)
        data[199_999, 5, 6] = 7
    with open_frames(tmp_path / "huge.h5") as stack:
        assert stack[-1][5, 6] == 7
        assert stack[199_998:].sum() == 7


def test_no_more_than_one_file_is_open(tmp_path: Path, counts: np.ndarray) -> None:
    for i in range(30):
        write_h5(tmp_path / f"{i}.h5", "counts", counts[i % 6])
    before = len(os.listdir("/proc/self/fd"))
    stack = open_frames(f"{tmp_path}/*.h5")
    assert len(os.listdir("/proc/self/fd")) == before
    check(stack, counts[np.arange(30) % 6])
    assert len(os.listdir("/proc/self/fd")) == before + 1
    stack.close()
    assert len(os.listdir("/proc/self/fd")) == before
    np.testing.assert_array_equal(stack[3], counts[3])  # opens it again
    stack.close()


def test_threads_can_share_a_stack(tmp_path: Path, counts: np.ndarray) -> None:
    for i, frame in enumerate(counts):
        write_tiff(tmp_path / f"{i}.tif", frame)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # seconds: threads interrupt each other in the middle of a read
    try:
        with open_frames(f"{tmp_path}/*.tif") as stack, ThreadPoolExecutor(4) as pool:
            for read in [pool.submit(stack.__getitem__, slice(None)) for _ in range(40)]:
                np.testing.assert_array_equal(read.result(), counts)
    finally:
        sys.setswitchinterval(interval)


def test_sources_are_never_modified(eiger: Path) -> None:
    files = [*eiger.parent.iterdir()]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    for path in files:
        path.chmod(0o444)
    with open_frames(eiger) as stack:
        frames = stack[:]
        frames[:] = 0  # the reader's own copy
        assert stack[0].any()
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in files] == before


# ---------------------------------------------------------------- files that cannot be used


def refused(source: Any, match: str) -> None:
    with pytest.raises(SymDenoiseError, match=match) as caught:
        open_frames(source)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_missing_files_and_folders(tmp_path: Path) -> None:
    refused(tmp_path / "nothing.h5", "no file matches")
    refused(f"{tmp_path}/*.cbf", "no file matches")
    refused(tmp_path, "is a folder")
    refused([], "no file to open")


@pytest.mark.parametrize("name", ["a.cbf", "a.edf", "a.tif", "a.npy", "a.h5", "a.xyz"])
def test_files_that_are_not_what_they_are_called(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("this is not a detector image, whatever it is called")
    refused(tmp_path / name, "cannot be read")
    (tmp_path / name).write_bytes(b"")
    refused(tmp_path / name, "file is empty")


def test_files_cut_short(tmp_path: Path, counts: np.ndarray) -> None:
    edf = write_edf(tmp_path / "a.edf", counts)
    edf.write_bytes(edf.read_bytes()[:-100])
    refused(edf, "ends in the middle of a frame")
    h5 = write_h5(tmp_path / "a.h5", "counts", counts)
    h5.write_bytes(h5.read_bytes()[: h5.stat().st_size // 2])
    refused(h5, "cannot be read")
    cbf = write_cbf(tmp_path / "a.cbf", counts[0])
    cbf.write_bytes(cbf.read_bytes()[: cbf.stat().st_size // 2])
    with open_frames(cbf) as stack, pytest.raises(SymDenoiseError, match=r"frames 0 to 0 of .*a\.cbf"):
        stack[0]


def test_colour_images(tmp_path: Path) -> None:
    colour = np.zeros((20, 30, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", colour, photometric="rgb")
    np.save(tmp_path / "a.npy", colour)
    write_h5(tmp_path / "a.h5", "image", colour)
    for name in ("a.tif", "a.npy", "a.h5"):
        refused(tmp_path / name, "colour")


def test_frames_of_different_shapes(tmp_path: Path, counts: np.ndarray) -> None:
    write_cbf(tmp_path / "1.cbf", counts[0])
    write_cbf(tmp_path / "2.cbf", counts[0, :-1])
    refused(f"{tmp_path}/*.cbf", "same shape")
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(counts[0])
        tiff.write(counts[0, :-1])
    with open_frames(tmp_path / "a.tif") as stack, pytest.raises(SymDenoiseError, match="same shape"):
        stack[1]


def test_hdf5_without_usable_frames(tmp_path: Path) -> None:
    refused(write_h5(tmp_path / "curve.h5", "q", np.arange(9.0)), "no dataset looks like frames")
    refused(write_h5(tmp_path / "rank5.h5", "counts", np.zeros((2, 2, 2, 9, 9))), r"stored as \(y, x\)")
    refused(write_h5(tmp_path / "complex.h5", "counts", np.zeros((9, 9), complex)), "real numbers")
    refused(write_h5(tmp_path / "aborted.h5", "entry/data/data", np.zeros((0, 9, 9))), "holds no frame")
    np.save(tmp_path / "a.npy", np.zeros((9, 9)))
    refused(f"{tmp_path}/a.npy::counts", "only HDF5 files have datasets")


def test_mask_and_centre_that_do_not_fit(tmp_path: Path, counts: np.ndarray) -> None:
    path = write_h5(tmp_path / "a.h5", "counts", counts)
    with h5py.File(path, "a") as file:
        file["mask"] = np.zeros(SHAPE[2:0:-1], bool)
    refused(path, "mask must have the shape")
    refused(write_h5(tmp_path / "b.h5", "counts", counts, beam_center=[1.0, np.nan]), "two finite numbers")


# ---------------------------------------------------------------- writing

DATE = "2026-01-02T03:04:05+00:00"


def denoised(frames: np.ndarray, **attrs: Any) -> xr.Dataset:
    dims = ("frame", "y", "x")
    intensity = frames.astype(np.float32)
    return xr.Dataset({"intensity": (dims, intensity), "sigma": (dims, np.sqrt(intensity))}, attrs=attrs)


def test_denoised_frames_come_back_as_nexus(tmp_path: Path, counts: np.ndarray) -> None:
    provenance = {"model": {"sha256": "abc", "size": np.int64(3)}, "threads": 2, "source": tmp_path}
    path = tmp_path / "out.h5"
    with NexusWriter(path, SHAPE[1:], date=DATE, sources=[tmp_path / "raw.h5"]) as writer:
        writer.append(denoised(counts[:4], **provenance))
        writer.append(denoised(counts[4:], **provenance))
        assert not path.exists()
    assert [each.name for each in tmp_path.iterdir()] == ["out.h5"]
    with h5py.File(path) as file:
        data = file[file.attrs["default"]]["data"]
        assert (file["entry"].attrs["NX_class"], data.attrs["NX_class"]) == ("NXentry", "NXdata")
        assert data.attrs["signal"] == "intensity"
        assert list(data.attrs["axes"]) == ["frame", "y", "x"]
        assert [len(data[name]) for name in data.attrs["axes"]] == list(SHAPE)
        np.testing.assert_array_equal(data["intensity"], counts.astype(np.float32))
        np.testing.assert_array_equal(data["intensity_errors"], np.sqrt(counts.astype(np.float32)))
        assert data["intensity"].chunks == (1, *SHAPE[1:])
        assert str(hdf5plugin.BSHUF_ID) in data["intensity"]._filters
        process = file["entry/process"]
        assert process["program"].asstr()[()] == "bluesky-symdenoise"
        assert process["date"].asstr()[()] == DATE
        assert list(process["sources"].asstr()) == [str(tmp_path / "raw.h5")]
        assert process["version"].asstr()[()] == __version__
        assert [key for key in process if key.startswith("parameters")] == ["parameters"]
        parameters = {key: value[()] for key, value in process["parameters"].items()}
        assert parameters == {"model_sha256": b"abc", "model_size": 3, "threads": 2, "source": str(tmp_path).encode()}
        note = json.loads(process["provenance/data"].asstr()[()])
        assert note == {"model": {"sha256": "abc", "size": 3}, "threads": 2, "source": str(tmp_path)}


def test_what_was_written_opens_again(tmp_path: Path, counts: np.ndarray) -> None:
    with NexusWriter(tmp_path / "out.h5", SHAPE[1:], date=DATE) as writer:
        writer.append(denoised(counts))
    with open_frames(tmp_path / "out.h5") as stack:
        check(stack, counts.astype(np.float32))


def test_frame_numbers_and_changing_parameters_are_kept(tmp_path: Path, counts: np.ndarray) -> None:
    with NexusWriter(tmp_path / "out.h5", SHAPE[1:], date=DATE) as writer:
        writer.append(denoised(counts[:2], symmetry="2").assign_coords(frame=[7, 9]))
        writer.append(denoised(counts[2:], symmetry="m").assign_coords(frame=[10, 11, 12, 13]))
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["entry/data/frame"][:].tolist() == [7, 9, 10, 11, 12, 13]
        later = file["entry/process/provenance_from_2/data"].asstr()[()]
        assert json.loads(later) == {"symmetry": "m"}


def test_an_exception_leaves_neither_a_file_nor_a_fragment(tmp_path: Path, counts: np.ndarray) -> None:
    class StopHereError(Exception):
        pass

    (tmp_path / "out.h5").write_text("an older result")

    def interrupted() -> None:
        with NexusWriter(tmp_path / "out.h5", SHAPE[1:], date=DATE, overwrite=True) as writer:
            writer.append(denoised(counts))
            raise StopHereError

    with pytest.raises(StopHereError):
        interrupted()
    assert [each.name for each in tmp_path.iterdir()] == ["out.h5"]
    assert (tmp_path / "out.h5").read_text() == "an older result"


def test_existing_files_are_kept_unless_told_and_sources_always(eiger: Path, counts: np.ndarray) -> None:
    with open_frames(eiger) as stack:
        sources = stack.sources
    out = eiger.with_name("out.h5")
    out.write_text("an older result")
    with pytest.raises(SymDenoiseError, match="the file exists"):
        NexusWriter(out, SHAPE[1:], date=DATE, sources=sources)
    with NexusWriter(out, SHAPE[1:], date=DATE, sources=sources, overwrite=True) as writer:
        writer.append(denoised(counts))
    with open_frames(out) as stack:
        check(stack, counts.astype(np.float32))
    for source in sources:  # a data file behind the master counts too
        with pytest.raises(SymDenoiseError, match="never overwritten"):
            NexusWriter(source, SHAPE[1:], date=DATE, sources=sources, overwrite=True)
    link = eiger.with_name("link.h5")
    link.symlink_to(eiger)
    with pytest.raises(SymDenoiseError, match="never overwritten"):
        NexusWriter(link, SHAPE[1:], date=DATE, sources=sources, overwrite=True)


def test_writer_refuses_a_missing_folder_other_shapes_and_nothing(tmp_path: Path, counts: np.ndarray) -> None:
    with pytest.raises(SymDenoiseError, match="folder does not exist"):
        NexusWriter(tmp_path / "no" / "out.h5", SHAPE[1:], date=DATE)
    with (
        pytest.raises(SymDenoiseError, match="must have shape"),
        NexusWriter(tmp_path / "out.h5", SHAPE[1:], date=DATE) as writer,
    ):
        writer.append(denoised(counts[:, 1:]))
    with (
        pytest.raises(SymDenoiseError, match="no frame was written"),
        NexusWriter(tmp_path / "out.h5", SHAPE[1:], date=DATE),
    ):
        pass
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- real data

REAL = os.environ.get("SYMDENOISE_REAL_DATA")


@pytest.mark.skipif(REAL is None, reason="SYMDENOISE_REAL_DATA names no folder of real detector images")
def test_real_files_open_with_what_they_state() -> None:
    files = sorted(Path(str(REAL)).glob("*.h5"))
    assert files
    for path in files:
        if path.name == "smi_waxs.h5":
            with pytest.raises(SymDenoiseError, match=r"shape0/counts \(5, 195, 1475\), .*shape1/counts"):
                open_frames(path)
            continue
        with open_frames(path) as stack, h5py.File(path) as file:
            assert stack.shape == file["counts"].shape
            np.testing.assert_array_equal(stack[-1], file["counts"][-1])
            np.testing.assert_array_equal(stack.mask, file["mask"][()])
            assert stack.symmetry == file.attrs["symmetry"]
            assert (stack.beam_center is None) == ("beam_center" not in file.attrs)


@pytest.mark.skipif(REAL is None, reason="SYMDENOISE_REAL_DATA names no folder of real detector images")
def test_a_real_frame_survives_cbf_edf_tiff_and_npy(tmp_path: Path) -> None:
    with open_frames(f"{REAL}/saxs_ssrl_scan.h5") as stack:
        frames = stack[:2]
    write_edf(tmp_path / "a.edf", frames)
    write_tiff(tmp_path / "a.tif", frames)
    write_npy(tmp_path / "a.npy", frames)
    for i, frame in enumerate(frames):
        write_cbf(tmp_path / f"{i}.cbf", frame)
    for source in ("a.edf", "a.tif", "a.npy", "?.cbf"):
        with open_frames(f"{tmp_path}/{source}") as stack:
            np.testing.assert_array_equal(stack[:], frames)


def test_a_nexus_default_of_dot_means_the_group_itself(tmp_path: Path) -> None:
    """``default="."`` is legal and must not be followed for ever."""
    with h5py.File(tmp_path / "dot.h5", "w") as file:
        file.attrs.update(default=".", signal="image")
        file["image"] = np.ones((2, 5, 6))
    with open_frames(tmp_path / "dot.h5") as stack:
        assert stack.shape == (2, 5, 6)


# ---------------------------------------------------------------- what files lead to


def virtual(path: Path, shape: tuple[int, ...], *mappings: tuple[Any, str, tuple[int, ...]]) -> Path:
    """A virtual dataset ``data``: for each source where its pixels go, its file and its shape."""
    layout = h5py.VirtualLayout(shape, np.uint16)
    for where, name, source in mappings:
        layout[where] = h5py.VirtualSource(name, "data", source)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("data", layout)
    return path


def test_groups_that_lead_to_each_other_end(tmp_path: Path, counts: np.ndarray) -> None:
    path = write_h5(tmp_path / "circle.h5", "somewhere/frames", counts)
    with h5py.File(path, "a") as file:
        file.attrs["default"] = "somewhere"
        file["somewhere"].attrs["default"] = "/somewhere"
        file["one"], file["two"] = h5py.SoftLink("/two"), h5py.SoftLink("/one")
        file["self"] = h5py.ExternalLink("circle.h5", "/")
    with open_frames(path) as stack:
        check(stack, counts)


def test_frames_that_no_source_holds_are_not_zeros(
    tmp_path: Path, counts: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    """At the end they are left out; between others they are an error."""
    two = (2, *SHAPE[1:])
    write_h5(tmp_path / "a.h5", "data", counts[:2])
    write_h5(tmp_path / "b.h5", "data", counts[2:4])
    with open_frames(virtual(tmp_path / "end.h5", SHAPE, (np.s_[:2], "a.h5", two))) as stack:
        check(stack, counts[:2])
    assert "only its first 2 of 6 frames are in files" in caplog.text
    gap = virtual(tmp_path / "gap.h5", SHAPE, (np.s_[:2], "a.h5", two), (np.s_[4:6], "b.h5", two))
    with pytest.raises(SymDenoiseError, match="2 of its 6 frames, the first is 2, are in none of its files"):
        open_frames(gap)
    rows = Hdf5Rows(gap, "data", frames=1, patience=0.1)
    np.testing.assert_array_equal(rows.read(5).squeeze(), counts[3])
    with pytest.raises(SymDenoiseError, match="a source that holds it"):
        rows.read(3)


def test_gaps_between_modules_are_masked(tmp_path: Path, counts: np.ndarray) -> None:
    half = SHAPE[1] // 2
    write_h5(tmp_path / "upper.h5", "data", counts[:, : half - 2])
    path = virtual(tmp_path / "v.h5", SHAPE, (np.s_[:, : half - 2], "upper.h5", (SHAPE[0], half - 2, SHAPE[2])))
    with open_frames(path) as stack:
        assert stack.mask is not None
        assert stack.mask[half - 2 :].all()
        assert not stack.mask[: half - 2].any()


def test_names_of_sources_are_read_as_hdf5_reads_them(tmp_path: Path, counts: np.ndarray) -> None:
    """A doubled per cent sign is one, files of a moved folder lie beside each other, and links are followed."""
    folder = tmp_path / "moved"
    folder.mkdir()
    write_h5(folder / "50%b.h5", "data", counts)
    for name, source in (("escaped.h5", "50%%b.h5"), ("absolute.h5", f"{tmp_path}/gone/50%%b.h5")):
        path = virtual(folder / name, SHAPE, (np.s_[:], source, SHAPE))
        (tmp_path / f"link_{name}").symlink_to(path)
        for each in (path, tmp_path / f"link_{name}"):
            with open_frames(each) as stack:
                check(stack, counts)
    (folder / "50%b.h5").unlink()
    with pytest.raises(SymDenoiseError, match=r"'50%b\.h5' with its frames is missing"):
        open_frames(folder / "escaped.h5")


def test_files_of_a_sequence_behind_a_missing_one_are_said(
    tmp_path: Path, counts: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    two = (2, *SHAPE[1:])
    for number in (0, 1, 3):
        write_h5(tmp_path / f"q{number}.h5", "data", counts[:2])
    source = h5py.VirtualSource("q%b.h5", "data", two, maxshape=two)
    unlimited = h5py.h5s.UNLIMITED
    space = h5py.h5s.create_simple((2 * 2, *SHAPE[1:]), (unlimited, *SHAPE[1:]))
    space.select_hyperslab((0, 0, 0), (unlimited, 1, 1), stride=(2, 1, 1), block=two)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_virtual(space, b"q%b.h5", b"data", source.sel.id)
        h5py.h5d.create(file.id, b"data", h5py.h5t.NATIVE_UINT16, space, plist)
    with open_frames(tmp_path / "v.h5") as stack:
        assert stack.shape[0] == 4
    assert "file q2.h5 is missing, so that the frames of 1 files after it are left out" in caplog.text


@pytest.mark.parametrize(("center", "size"), [(np.nan, 0.172), (15.0, np.inf)])
def test_a_beam_centre_that_is_not_finite_is_not_used(
    tmp_path: Path, counts: np.ndarray, center: float, size: float, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_h5(tmp_path / "a.nxs", "entry/data/data", counts)
    with h5py.File(path, "a") as file:
        for axis in "yx":
            file[f"{DETECTOR}/beam_center_{axis}"], file[f"{DETECTOR}/{axis}_pixel_size"] = center, size
            for name in (f"beam_center_{axis}", f"{axis}_pixel_size"):
                file[f"{DETECTOR}/{name}"].attrs["units"] = np.array([b"mm"])
    with open_frames(path) as stack:
        assert stack.beam_center is None
    assert "is not used" in caplog.text


def test_pixels_whose_mask_is_in_a_missing_file_are_masked(tmp_path: Path, counts: np.ndarray) -> None:
    half = SHAPE[1] // 2
    for name, rows in (("upper.h5", half), ("lower.h5", SHAPE[1] - half)):
        write_h5(tmp_path / name, "data", np.zeros((rows, SHAPE[2]), np.uint16))
    parts = (np.s_[:half], "upper.h5", (half, SHAPE[2])), (np.s_[half:], "lower.h5", (SHAPE[1] - half, SHAPE[2]))
    virtual(tmp_path / "mask.h5", SHAPE[1:], *parts)
    path = write_h5(tmp_path / "frames.h5", "counts", counts)
    with h5py.File(path, "a") as file:
        file["mask"] = h5py.ExternalLink("mask.h5", "data")
    (tmp_path / "lower.h5").unlink()
    with open_frames(path) as stack:
        assert stack.mask is not None
        assert stack.mask[half:].all()
        assert not stack.mask[:half].any()
