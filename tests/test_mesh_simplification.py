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
