"""The teacher of a network, as its record has it."""

from __future__ import annotations

from dwsep_zoo.schema.part import Measured, Part


class TeacherRecord(Part):
    """A network whose outputs another one learned, and how.

    Attributes:
        name: model, conv type and width, or the file's; without the seed.
        source: the run, checkpoint, file or name it was opened from.
        run: the name of the run that trained it, if one did.
        fingerprint: hash of its weights or of its file.
        test_acc: its accuracy on the same test images; ``None`` if it is of others, or unknown.
        macs: multiply-adds for one of its own images, of ``image_size`` pixels.
        kind, temperature, weight, features: as in the settings ``distill.*``.
    """

    name: str
    source: str | None = None
    run: str | None = None
    fingerprint: str | None = None
    test_acc: Measured = None
    params: int | None = None
    macs: int | None = None
    image_size: int | None = None
    kind: str | None = None
    temperature: Measured = None
    weight: Measured = None
    features: Measured = None
