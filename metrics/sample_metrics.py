"""Metrics of samples against real images: printed, and recorded with what they are numbers of."""

import functools
import itertools

import evaluation
from storage.files import atomic_write, load_npz
from storage.workdir import Workdir, suffix
from utils import UserError, get_device, lookup


def _own_prdc(config):
    return functools.partial(
        evaluation.precision_recall_density_coverage,
        nearest_k=config.eval.nearest_k,
        block_bytes=config.eval.block_bytes,
        device=get_device(config.device),
    )


def _prdc_package(config):
    return functools.partial(evaluation.prdc_package, nearest_k=config.eval.nearest_k)


# The implementations that --backend names: ours, and the oracles that it is tested against.
OURS = "ours"
FIDIS = {OURS: evaluation.fid_and_is, "tfgan": evaluation.tfgan_fid_and_is}
PRDC = {OURS: _own_prdc, "prdc": _prdc_package}


def fidis(config, workdir, real, generated, mode="full", backend=OURS):
    """Print and record FID and the Inception score: over all samples, or class by class.

    Returns:
        A dict of two floats: of all samples, or the means over classes.

    Raises:
        UserError: the sets do not compare or are too small, or there is no such backend.
    """
    metric = lookup(FIDIS, backend, "--backend of --fidis")
    arrays = (real.pool, generated.pool, generated.logits)
    settings = {"backend": backend}
    return _measure(config, workdir, "fid_is", metric, real, generated, arrays, mode, settings)


def prdc(config, workdir, real, generated, mode="full", backend=OURS):
    """Print and record precision, recall, density and coverage, as `fidis` does."""
    metric = lookup(PRDC, backend, "--backend of --prdc")(config)
    arrays = (real.pool, generated.pool)
    settings = {"backend": backend, "nearest_k": config.eval.nearest_k}
    return _measure(config, workdir, "prdc", metric, real, generated, arrays, mode, settings)


def _measure(config, workdir, name, metric, real, generated, arrays, mode, settings):
    """Apply `metric` to `arrays`, the real set's first; print and record what it gives."""
    extractor = _common_extractor(real, generated)
    place, method = Workdir(workdir), config.sampling.method
    settings = {
        **settings,
        "features": extractor,
        "generated": len(generated.pool),
        "real": len(real.pool),
        "real_features": str(real.source),
        "samples": generated.origin,
    }
    about = (
        f"features {extractor}\n"
        f"{len(generated.pool)} samples{_describe(generated.origin)}, {len(real.pool)} real images"
    )
    if mode == "full":
        values = metric(*arrays)
        print(_table(about, [{"": "all", **values}]))
    else:
        sizes = (real.sizes, *itertools.repeat(generated.sizes, len(arrays) - 1))
        parts = [evaluation.split_by_class(*pair) for pair in zip(arrays, sizes, strict=True)]
        each, values = evaluation.classwise(metric, *parts)
        settings["classes"] = len(each)
        rows = [{"class": label, **row} for label, row in enumerate(each)]
        text = _table(about, [*rows, {"class": "mean", **values}])
        path = place.classwise(name, method)
        with atomic_write(path, "w") as file:
            file.write(text + "\n")
        print(text)
        print(f"Written to {path}.")
    entry = name + ("_class" if mode == "class" else "") + suffix(method)
    place.record(**{entry: {**values, "settings": settings}})
    return values


def _common_extractor(real, generated):
    """The feature extractor that both sets are of.

    Raises:
        UserError: there is none.
    """
    common = [name for name in generated.extractors if name in real.extractors]
    if not common:
        raise UserError(
            f"{generated.source} holds features of {' or '.join(generated.extractors)}, "
            f"{real.source} those of {' or '.join(real.extractors)}; only features of one network "
            "compare. Encode one of them again."
        )
    return common[0]


def _describe(origin):
    """What made samples, in a few words."""
    known = [name for name in origin if name.endswith("step") or name == "seed"]
    words = [f"{name.replace('_', ' ')} {origin[name]}" for name in known]
    if "sampling" in origin:
        words.append(f"sampler {origin['sampling']['method']}")
    return f" ({', '.join(words)})" if words else ""


def _table(about, rows):
    """Lines of text: `about` as comments, then a column for each key of the rows."""
    cells = [list(rows[0])]
    cells += [
        [f"{v:.6g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [f"# {line}" for line in about.splitlines()]
    lines += ["  ".join(cell.rjust(w) for cell, w in zip(row, widths)).rstrip() for row in cells]
    return "\n".join(lines)


def nfe(config, workdir, rounds):
    """Print and record the mean number of function evaluations of the samples in `rounds`.

    Raises:
        UserError: a file does not hold its number.
    """
    total = sum(item.rows for item in rounds)
    mean = sum(item.rows * _nfe_of(item.path) for item in rounds) / total
    settings = {"generated": total, "samples": rounds[0].origin}
    entry = f"nfe{suffix(config.sampling.method)}"
    Workdir(workdir).record(**{entry: {"nfe": mean, "settings": settings}})
    print(f"Mean NFE {mean:.1f} over {total} samples{_describe(rounds[0].origin)}")
    return mean


def _nfe_of(path):
    value = load_npz(path, "nfe")["nfe"]
    if value.size != 1 or value.dtype.kind not in "iuf":
        raise UserError(f"{path} holds nfe of {value.dtype} and shape {value.shape}, no number.")
    return float(value.item())
