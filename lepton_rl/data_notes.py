"""What a person should know of the images before believing the figures."""

from lepton_rl.class_names import some
from lepton_rl.data_summary import copies, shared_images
from lepton_rl.domain import Domain


def data_notes(
    names: tuple[str, ...], train: Domain | None, support: Domain | None, target: Domain, test: Domain | None
) -> list[str]:
    """Say what a person should know of the images before believing the figures."""
    notes = []
    for what, domain in (("source", train), ("target", target)):
        if domain is None or not domain.has_labels:
            continue
        absent = [name for i, name in enumerate(names) if not (domain.labels == i).any()]
        if absent:
            notes.append(f"the {what} has no labelled image of {some(absent)}")
        twice = copies(domain.images, domain.labels).contradicting
        if twice:
            notes.append(f"{twice} images are in the {what} with two labels, of which one must be wrong")
    if test is not None:
        for what, domain in (("source", train), ("labelled target", support)):
            same = 0 if domain is None else shared_images(test.images, domain.images)
            if same:
                notes.append(f"{same} of {len(test)} test images are also in the {what} images: test figures flatter")
    return notes
