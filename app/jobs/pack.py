"""The plan as files to take along: what `Plan.save` writes, in a zip."""

import io
import tempfile
import zipfile
from pathlib import Path

from app.host import Job
from app.jobs._bench import Bench
from app.jobs._table import Answers
from app.results import Packed
from app.specs import Pack


def pack(bench: Bench, spec: Pack, job: Job) -> Packed:
    """Makes the plan's directions, if need be, and saves it; unpacked, it runs as it is."""
    plan = bench.plan(spec.model, spec.plan, job)
    packed = io.BytesIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for file in sorted(plan.save(Path(folder)).iterdir()):
            archive.write(file, file.name)
    return Packed(packed.getvalue())


ANSWERS = Answers({Pack: pack})
