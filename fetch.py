"""Any image classification set of tensorflow-datasets -> the four idx files that data.py reads."""
import gzip
import struct

import numpy as np

from data import FILES
from files import InputError, write_atomically


def fetch(name, folder, builder=None):
    """Load a dataset through tensorflow-datasets and keep it in `folder` as four idx files.

    Args:
      name: a tensorflow-datasets image classification set with train and test splits.
      folder: Path to write to; later runs read it without TensorFlow.
      builder: a tfds builder to use instead of tfds.builder(name), already prepared.
    Raises:
      InputError: TensorFlow is missing, the name is unknown, or its images are not uint8.
    """
    try:
        import tensorflow  # noqa: F401  (tensorflow-datasets needs it to build and to read)
        import tensorflow_datasets as tfds
    except ImportError:
        raise InputError(f"DATASET = {name!r} needs TensorFlow once, to build it: "
                         "pip install -r requirements-tfds.txt") from None
    try:
        if builder is None:
            builder = tfds.builder(name)
            builder.download_and_prepare()
        for split, (images_name, labels_name) in zip(("train", "test"), FILES):
            images, labels = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1,
                                                              as_supervised=True))
            if images.dtype != np.uint8 or labels.max() > 255:
                raise InputError(f"DATASET = {name!r} is not uint8 images in at most 256 classes")
            if images.shape[-1] == 1:
                images = images[..., 0]
            for file, array in ((images_name, images), (labels_name, labels.astype(np.uint8))):
                header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
                write_atomically(folder / f"{file}.gz",
                                 gzip.compress(header + array.tobytes(), 6, mtime=0))
    except InputError:
        raise
    except Exception as error:      # tfds raises its own kinds for unknown names, no network, ...
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise InputError(f"DATASET = {name!r} failed in tensorflow-datasets: {reason}") from None
