"""Meshes are drawn coarser than they are, where nothing but a picture depends on them."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

if find_spec("mujoco") is None:
    pytest.skip("needs the extra 'metaworld' or another with mujoco", allow_module_level=True)
import mujoco

from priorvla.deployment.environments.mesh_simplification import simplify_meshes


@pytest.fixture
def model() -> mujoco.MjModel:
    """Two balls of 10 cm with 2,000 vertices: one to look at, one that others bump into; and a coarse third."""
    points = np.random.default_rng(0).normal(size=(2000, 3))
    points *= 0.05 / np.linalg.norm(points, axis=1, keepdims=True)
    meshes = "".join(
        f"<mesh name='{name}' vertex='{' '.join(f'{x:.5f}' for x in chosen.ravel())}'/>"
        for name, chosen in (("seen", points), ("solid", points[::-1]), ("coarse", points[:100]))
    )
    geoms = (
        "<geom type='mesh' mesh='seen' contype='0' conaffinity='0' group='1'/><geom type='mesh' mesh='solid'/>"
        "<geom type='mesh' mesh='coarse' contype='0' conaffinity='0' group='1'/>"
    )
    text = f"<mujoco><asset>{meshes}</asset><worldbody><body><freejoint/>{geoms}</body></worldbody></mujoco>"
    return mujoco.MjModel.from_xml_string(text)


def corners(model: mujoco.MjModel, name: str) -> np.ndarray:
    """(faces, 3 corners, xyz) of a mesh as it is drawn."""
    mesh = model.mesh(name)
    faces = model.mesh_face[mesh.faceadr[0] : mesh.faceadr[0] + mesh.facenum[0]]
    return model.mesh_vert[mesh.vertadr[0] :][faces]


def test_a_mesh_that_is_only_seen_loses_faces_and_keeps_its_shape_to_a_cell(model: mujoco.MjModel) -> None:
    before = {name: corners(model, name).copy() for name in ("seen", "solid", "coarse")}
    weight = model.body_mass.copy()
    assert simplify_meshes(model, 0.01) == int(model.mesh_facenum.sum())
    seen = corners(model, "seen")
    assert 100 < len(seen) < 0.4 * len(before["seen"])
    radii = np.linalg.norm(seen, axis=-1)
    assert radii.min() > 0.05 - 0.01 and radii.max() < 0.05 + 0.001
    for one, other in ((0, 1), (1, 2), (2, 0)):
        assert np.linalg.norm(seen[:, one] - seen[:, other], axis=1).min() > 0  # no face is a line
    for name in ("solid", "coarse"):
        np.testing.assert_array_equal(corners(model, name), before[name])
    np.testing.assert_array_equal(model.body_mass, weight)


def test_a_cell_of_nothing_changes_nothing_and_a_negative_one_is_refused(model: mujoco.MjModel) -> None:
    before = model.mesh_facenum.copy()
    simplify_meshes(model, 0.0)
    np.testing.assert_array_equal(model.mesh_facenum, before)
    with pytest.raises(ValueError, match="cell=-1 must be 0 or more"):
        simplify_meshes(model, -1)


def test_a_texture_lies_where_it_lay_however_large_the_faces_become() -> None:
    """A sheet of two patches of a texture: the place in it is a linear function of that on the sheet, each side."""
    side = 31
    x, y = (axis.ravel() / (side - 1) for axis in np.meshgrid(np.arange(side), np.arange(side)))
    points = np.column_stack([x, y, 0.1 * x * y]) * 0.1  # metres
    texture = np.column_stack([x, y]) / 20 + np.where(x > 0.5, 0.5, 0.0)[:, None]
    corner = (np.arange(side - 1)[:, None] * side + np.arange(side - 1)).ravel()
    faces = [[corner, corner + 1, corner + side], [corner + 1, corner + side + 1, corner + side]]
    faces = np.concatenate([np.column_stack(half) for half in faces])
    faces = faces[(x[faces] > 0.5).sum(axis=1) % 3 == 0]  # none goes over the seam
    told = {"vertex": points, "texcoord": texture, "face": faces}
    said = " ".join(f"{key}='{' '.join(map(str, values.ravel()))}'" for key, values in told.items())
    model = mujoco.MjModel.from_xml_string(
        f"<mujoco><asset><mesh name='sheet' inertia='shell' {said}/></asset><worldbody>"
        "<geom type='mesh' mesh='sheet' contype='0' conaffinity='0'/></worldbody></mujoco>"
    )

    def places() -> tuple[np.ndarray, np.ndarray]:
        drawn = model.mesh_facetexcoord[: model.mesh_facenum[0]].ravel()
        return corners(model, "sheet").reshape(-1, 3), model.mesh_texcoord[drawn]

    before, shown = places()
    first = shown[:, 0] < 0.25
    linear = [
        np.linalg.lstsq(np.column_stack([before, np.ones(len(before))])[own], shown[own])[0] for own in (first, ~first)
    ]
    simplify_meshes(model, 0.012)
    after, shown = places()
    assert len(after) < 0.3 * len(before)
    first = shown[:, 0] < 0.25
    seam = np.abs(shown[:, 0] % 0.5 - 0.025) < 0.006  # its cells have vertices of both patches
    assert (first & ~seam).sum() > 50 and (~first & ~seam).sum() > 50
    for own, fit in ((first, linear[0]), (~first, linear[1])):
        expected = np.column_stack([after, np.ones(len(after))]) @ fit
        assert np.ptp(shown[own], axis=0).max() < 0.06  # nothing between the patches
        np.testing.assert_allclose(shown[own & ~seam], expected[own & ~seam], atol=1e-6)
