"""Coarser meshes for small pictures: what is finer than a pixel is not worth drawing.

Software OpenGL draws a small picture of a scene with scanned things in the time that its triangles take. Vertices are
joined by cells of a grid (vertex clustering, Rossignac and Borrel 1993; the cell's size is our choice), in the model
itself and only in meshes that are seen and never touched: no motion changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST_FACES = 500  # a mesh of fewer is left as it is
TEXTURE_CELL = 1 / 16  # of a texture's side: corners further apart in it lie on different patches of it, across a seam


def simplify_meshes(model: Any, cell: float) -> int:
    """Joins the vertices of visual meshes that lie in one cube of side `cell` (m); call it before anything is drawn.

    Corners that are joined get the mean of their places in the texture, those of one patch of it. A mesh that also
    collides, and one of fewer than 500 faces, is left alone.

    Args:
        model: a `mujoco.MjModel`, which is changed.
        cell: side of a cube; 0 changes nothing.

    Returns:
        the number of faces that are left in all meshes.

    Raises:
        ValueError: on a negative `cell`.
    """
    if cell < 0:
        raise ValueError(f"cell={cell} must be 0 or more (metres)")
    import mujoco

    if cell:
        shaped_by_mesh = np.isin(model.geom_type, (mujoco.mjtGeom.mjGEOM_MESH, mujoco.mjtGeom.mjGEOM_SDF))
        solid = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
        touched = set(model.geom_dataid[shaped_by_mesh & solid].tolist())
        for mesh in range(model.nmesh):
            if mesh not in touched and model.mesh_facenum[mesh] >= FEWEST_FACES:
                _simplify(model, mesh, cell)
    return int(model.mesh_facenum.sum())


def _simplify(model: Any, mesh: int, cell: float) -> None:
    begin, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    first, vertices = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
    places = model.mesh_vert[first : first + vertices]  # a view
    joined = _numbered(np.floor((places - places.min(axis=0)) / cell).astype(np.int64))
    sizes = np.bincount(joined)
    centres = np.stack([np.bincount(joined, places[:, axis]) / sizes for axis in range(3)], axis=1)
    corners = np.sort(joined[model.mesh_face[begin : begin + count]], axis=1)
    _, once = np.unique(_numbered(corners), return_index=True)
    flat = (corners[once, 0] == corners[once, 1]) | (corners[once, 1] == corners[once, 2])
    kept = np.sort(once[~flat])
    _join_texture(model, mesh, joined)
    places[:] = centres[joined]
    for of_faces in (model.mesh_face, model.mesh_facenormal, model.mesh_facetexcoord):
        of_faces[begin : begin + len(kept)] = of_faces[begin + kept]
    model.mesh_facenum[mesh] = len(kept)


def _join_texture(model: Any, mesh: int, joined: NDArray[np.int64]) -> None:
    """A face that has grown shows as much more of the texture: each corner that of its cell, not of its old vertex."""
    first, count = model.mesh_texcoordadr[mesh], model.mesh_texcoordnum[mesh]
    if first < 0:
        return
    begin, faces = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    coordinates = model.mesh_texcoord[first : first + count]  # a view
    cells = np.zeros(count, np.int64)
    cells[model.mesh_facetexcoord[begin : begin + faces]] = joined[model.mesh_face[begin : begin + faces]]
    patches = np.floor((coordinates - coordinates.min(axis=0)) / TEXTURE_CELL).astype(np.int64)
    together = _numbered(np.column_stack([cells, patches]))
    sizes = np.bincount(together)
    means = np.stack([np.bincount(together, coordinates[:, axis]) / sizes for axis in range(2)], axis=1)
    coordinates[:] = means[together]


def _numbered(triples: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of each row's triple (n, 3), equal for equal ones: (n,)."""
    top = int(triples.max()) + 1
    keys = (triples[:, 0] * top + triples[:, 1]) * top + triples[:, 2]
    return np.unique(keys, return_inverse=True)[1].reshape(-1)


__all__ = ["simplify_meshes"]
