"""Registration of a golden sample to the query photo: any in-plane rotation, shift, scale, moderate perspective.

Candidates come from identity (the fixed camera), an exhaustive search over rotation, scale and shift, and, when those do not
convince, from SIFT. They are refined coarse to fine by ECC (Evangelidis & Psarakis, 2008) on gradient images and judged by
one yardstick, the correlation of edges and of normalised intensity on the part. The remaining displacement is measured tile
by tile with phase correlation, independently of the optimiser. When nothing fits, `ok` is False and the pair is compared
without registration.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import scipy.fft
from numpy.typing import NDArray
from propcache.api import cached_property

from refdiff.model.images import F32, RgbImage

Matrix = NDArray[np.float64]

_WORK_PX = 256  # long side, in px, at which registration works
_COMPLETED_PX = 80  # long side at which it is worked out how a picture goes on beyond its end
_COVERAGE_PX = 256  # long side of the plane that says what an image covers
_SEARCH_LEVEL = 8  # work px / 8 is where rotations are tried
_SEARCH_DEG = 9.0
_SEARCH_SIDE = scipy.fft.next_fast_len(3 * _WORK_PX // (2 * _SEARCH_LEVEL), real=True)  # px of its square canvas
UPRIGHT_DEG = _SEARCH_DEG  # a part turned by less lies as its reference does
_SCALES = (0.71, 0.84, 1.19, 1.41)  # besides 1; ECC bridges the steps
_ANGLES = [i * _SEARCH_DEG for i in range(round(360 / _SEARCH_DEG))]
_MAX_PLACES = 4  # places of the search that are refined
_SIFT_SHRINK = 0.75  # SIFT takes twice as long at full work px and adds no precision that ECC does not

# A score is 3/4 correlation of edges + 1/4 correlation of normalised intensity. Rendered parts of five kinds, registered
# right: 5th percentile .84; other designs of the same kind .1 to .65 (bottles, which share their shape, up to .9).
MIN_NCC = 0.30  # gradient correlation below which even the fixed camera's identity is rejected
_MIN_NCC_FOUND = 0.50  # a registration that was searched for had more chances to fit by luck
_MIN_SCORE_FOUND = 0.62
_SCORE_PER_UNCOVERED = 0.4  # more is asked of a registration that leaves much of the photo uncovered
MIN_OVERLAP = 0.4  # a part at scale 0.7 covers half of the photo, less in perspective
MAX_RESIDUAL_PART = 0.02  # of the long side
_MIN_NCC_FIXED = 0.60  # identity at least this good is kept if it is in place and no rotation fits better
_MAX_RESIDUAL_FIXED_PX = 1.0  # px at work resolution; measurement noise is about half of that
_IN_PLACE_PART = 0.9  # of the textured tiles, that are in place
_MIN_NCC_PLACED = 0.45  # identity at least this good was probably meant: turns must explain clearly more
_MAX_ERROR_RATIO = 0.7  # part of what the first candidate leaves unexplained that a later one may leave
_MAX_SCORE_LAG = 0.15  # of score, with which a coarse candidate needs no runner-up
_UNQUESTIONED_SCORE = 0.93  # a score that is not questioned
_ACCEPT_SCORE = 0.80  # a score that ends the search
_MIN_COARSE_SCORE = 0.25  # a score after coarse refinement that is not worth finer work

_MAX_PERSPECTIVE = 0.75  # relative change of local scale across the image
_MIN_SCALE, _MAX_SCALE = 0.5, 2.0
_MAX_ANISOTROPY = 1.25  # ratio of the two local scales at the centre
_HALF = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1.0]])  # OpenCV puts pixel centres at integers
_UNHALF = np.linalg.inv(_HALF)


@dataclass(frozen=True)
class Alignment:
    """How the reference lies on the query."""

    method: str  # "identity", "rotation-search" or "sift", with "+ecc" where refined; "none" when not ok
    ok: bool
    # (3, 3) float64, reference px -> query px, both at original resolution; the plain resize when not ok
    matrix: Matrix
    # median remaining displacement in query px; None where no textured tile could be measured
    residual_px: float | None
    overlap: float  # fraction 0..1 of the query that the warped reference covers
    ncc: float  # gradient correlation -1..1 in the overlap
    angle_deg: float  # in-plane rotation -180..180, clockwise as seen
    scale: float  # query px per reference px at the reference's centre
    reason: str  # for people: why it was accepted or rejected
    trained_reason: str = ""  # the same in the words that the language model was trained on; never reword it

    @property
    def upright(self) -> bool:
        """Whether the part lies as the reference does, but for a few degrees; so is what could not be registered."""
        return abs(self.angle_deg) < UPRIGHT_DEG


@dataclass(frozen=True)
class _Candidate:
    """matrix: reference work px -> query work px. ncc, look: correlation of gradients and of normalised intensity."""

    method: str
    matrix: Matrix
    ncc: float = -1.0
    look: float = -1.0
    overlap: float = 0.0
    level: int = 0  # at which it was judged, 0: not yet

    @property
    def score(self) -> float:
        """Both together: edges say where the part lies, its look which way round."""
        return 0.75 * self.ncc + 0.25 * self.look


class View:
    """One image as registration sees it: grey at work px, gradient and normalised intensity also at 1/2, 1/4, 1/8.

    What is derived from these alone is computed when it is first needed and stays, so a golden's View is worth keeping.
    """

    def __init__(self, image: RgbImage) -> None:
        self.original_size = (image.shape[0], image.shape[1])
        self.grey, self.from_original = _work_grey(image, _WORK_PX)
        gradient, look = _gradient(self.grey), _look(self.grey)
        self.gradient = {1: gradient}
        self.look = {1: look}
        for k in (2, 4, 8):
            size = (max(8, round(gradient.shape[1] / k)), max(8, round(gradient.shape[0] / k)))
            self.gradient[k] = np.asarray(cv2.resize(gradient, size, interpolation=cv2.INTER_AREA), np.float32)
            self.look[k] = np.asarray(cv2.resize(look, size, interpolation=cv2.INTER_AREA), np.float32)
        self._spectra: dict[float, tuple[NDArray[np.complex64], F32]] = {}

    @property
    def nbytes(self) -> int:
        """What it takes of memory, with the spectra of one scale."""
        return 12 * self.grey.nbytes // 4 + self.grey.nbytes // 2 + 8 * 21 * _SEARCH_SIDE**2

    @cached_property
    def spectrum(self) -> NDArray[np.complex64]:
        """(side, side // 2 + 1) of the small gradient image."""
        return np.asarray(scipy.fft.rfft2(_on_canvas(self.gradient[_SEARCH_LEVEL])), np.complex64)

    def spectra(self, scale: float) -> tuple[NDArray[np.complex64], F32]:
        """(angles, side, side // 2 + 1) conjugate spectra of the small gradient image turned, and their norms (angles,)."""
        if scale not in self._spectra:
            canvas, centre = _on_canvas(self.gradient[_SEARCH_LEVEL]), ((_SEARCH_SIDE - 1) / 2, (_SEARCH_SIDE - 1) / 2)
            turns = [cv2.getRotationMatrix2D(centre, a, scale) for a in _ANGLES]
            turned = np.stack([cv2.warpAffine(canvas, turn, (_SEARCH_SIDE, _SEARCH_SIDE)) for turn in turns])
            spectra = scipy.fft.rfft2(turned)
            norms = np.sqrt(np.einsum("nij,nij->n", turned, turned))
            self._spectra[scale] = (np.asarray(spectra.conj(), np.complex64), np.asarray(norms, np.float32))
        return self._spectra[scale]

    @cached_property
    def sift(self) -> tuple[Sequence[cv2.KeyPoint], NDArray[np.float32] | None]:
        """Its keypoints and their descriptors (n, 128), None if there are none."""
        sift = cv2.SIFT.create(nfeatures=400, contrastThreshold=0.02)
        keypoints, described = sift.detectAndCompute(_shrunk(self.grey), None)
        return keypoints, None if described is None else np.asarray(described, np.float32)

    @cached_property
    def textured(self) -> list[tuple[slice, slice]]:
        """Tiles that show enough for their displacement to be measured."""
        gradient = self.gradient[1]
        h, w = gradient.shape
        tile = min(h, w, max(24, min(h, w) // 4))
        least = 0.5 * max(float(gradient.std()), 1e-3)
        step = max(1, tile * 3 // 4)
        places = ((y, x) for y in range(0, h - tile + 1, step) for x in range(0, w - tile + 1, step))
        boxes = (np.s_[y : y + tile, x : x + tile] for y, x in places)
        return [box for box in boxes if float(cv2.meanStdDev(gradient[box])[1][0, 0]) >= least]

    @property
    def size(self) -> tuple[int, int]:
        return self.grey.shape[0], self.grey.shape[1]

    def to_level(self, k: int) -> Matrix:
        h, w = self.size
        return np.diag([self.gradient[k].shape[1] / w, self.gradient[k].shape[0] / h, 1.0])


def _work_grey(image: RgbImage, long_side: int) -> tuple[F32, Matrix]:
    """Grey float32 0..255 with at most `long_side` px, and the matrix original px -> work px (pixel centres at .5)."""
    h, w = image.shape[:2]
    f = min(1.0, long_side / max(h, w))
    size = (max(8, round(w * f)), max(8, round(h * f)))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if size != (w, h):
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return grey.astype(np.float32), np.diag([size[0] / w, size[1] / h, 1.0])


def _gradient(grey: F32) -> F32:
    """Gradient magnitude, compressed so a few strong edges do not dominate and lighting matters little."""
    steep = steepness(cv2.GaussianBlur(grey, (0, 0), 1.2))
    return np.asarray(cv2.GaussianBlur(np.sqrt(steep + 1.0), (0, 0), 1.0), dtype=np.float32)


def steepness(grey: cv2.typing.MatLike) -> F32:
    """(H, W) lengths of the gradients of a plane, to the bit the same every time.

    `cv2.magnitude` differs in the last bit by where in memory its result happens to lie: two runs would then register a pair
    differently, and near a limit judge the same file differently.
    """
    gx, gy = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    return np.asarray(np.sqrt(gx * gx + gy * gy), np.float32)


def edges(image: RgbImage) -> F32:
    """(H, W) gradient magnitude of (H, W, 3), as registration compares it."""
    return _gradient(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32))


def _look(grey: F32) -> F32:
    """Intensity relative to its wide surroundings: tells the dark marker from the bright one, not the lamp."""
    side = int(0.32 * max(grey.shape)) | 1
    log = cv2.GaussianBlur(np.log(grey + 8.0), (0, 0), 1.5)
    wide = cv2.blur(cv2.blur(log, (side, side)), (side, side))
    return np.asarray(np.clip(log - wide, -0.7, 0.7), np.float32)


def scaling(size: tuple[int, ...], target: tuple[int, ...]) -> Matrix:
    """(3, 3): px of an image of `size` (H, W, ...) -> px of the same image at `target`."""
    return np.diag([target[1] / size[1], target[0] / size[0], 1.0])


def warp(image: NDArray, matrix: Matrix, size: tuple[int, int], border: int = cv2.BORDER_REPLICATE) -> NDArray:
    """Warp by `matrix` (pixel corners at integers) to `size` (H, W), bilinear."""
    m = _HALF @ matrix @ _UNHALF
    return np.asarray(cv2.warpPerspective(image, m, size[::-1], flags=cv2.INTER_LINEAR, borderMode=border))


def coverage(matrix: Matrix, reference_size: tuple[int, int], query_size: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) bool: query pixels that the warped reference covers."""
    # the edge of a coarse plane lies where that of a fine one does
    f = min(1.0, _COVERAGE_PX / max(reference_size))
    h, w = (max(1, round(n * f)) for n in reference_size)
    ones = np.full((h, w), 255, np.uint8)
    matrix = matrix @ np.diag([reference_size[1] / w, reference_size[0] / h, 1.0])
    return warp(ones, matrix, query_size, cv2.BORDER_CONSTANT) > 127


def warp_reference(
    reference: RgbImage, matrix: Matrix, query_size: tuple[int, int]
) -> tuple[RgbImage, NDArray[np.bool_]]:
    """The reference on the query's pixel grid, (H, W, 3) uint8, and which pixels it really covers, (H, W) bool."""
    warped = warp(reference, matrix, query_size, cv2.BORDER_REPLICATE)
    return np.asarray(warped, np.uint8), coverage(matrix, reference.shape[:2], query_size)


class OnGrid:
    """An image on another pixel grid, drawn window by window; what shrinks is averaged over the area."""

    def __init__(self, image: RgbImage, matrix: Matrix) -> None:
        """matrix: (3, 3), image px -> grid px."""
        h, w = image.shape[:2]
        scale = angle_and_scale(matrix, (h, w))[1]
        self._finer = 2 if scale < 0.75 else 1
        f = min(1.0, self._finer * scale)
        small = (max(1, round(h * f)), max(1, round(w * f)))
        self._image = image
        if small != (h, w):
            self._image = np.asarray(cv2.resize(image, small[::-1], interpolation=cv2.INTER_AREA), np.uint8)
        self._matrix = matrix @ np.diag([w / small[1], h / small[0], 1.0])

    def window(self, y: int, x: int, h: int, w: int) -> tuple[RgbImage, NDArray[np.bool_]]:
        """The window of the grid that begins at (y, x): (h, w, 3) uint8, and which pixels the image covers, (h, w) bool."""
        matrix = np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1.0]]) @ self._matrix
        covered = coverage(matrix, self._image.shape[:2], (h, w))
        finer = self._finer
        warped = warp(self._image, np.diag([finer, finer, 1.0]) @ matrix, (finer * h, finer * w))
        if finer > 1:
            warped = cv2.resize(warped, (w, h), interpolation=cv2.INTER_AREA)
        return np.asarray(warped, np.uint8), covered


def on_grid(image: RgbImage, matrix: Matrix, size: tuple[int, int]) -> tuple[RgbImage, NDArray[np.bool_]]:
    """The whole grid of `size` (H, W), as `OnGrid` draws it."""
    return OnGrid(image, matrix).window(0, 0, *size)


def completed(picture: RgbImage, covered: NDArray[np.bool_], other: RgbImage) -> RgbImage:
    """(H, W, 3): where nothing covers a picture, what another one shows there, as bright as this one is nearby.

    Without a seam: features next to one would differ from those of a picture that goes on.
    """
    if covered.all() or not covered.any():
        return picture
    f = min(1.0, _COMPLETED_PX / max(covered.shape))
    small = max(1, round(covered.shape[1] * f)), max(1, round(covered.shape[0] * f))
    weight = cv2.resize(covered.astype(np.float32), small, interpolation=cv2.INTER_AREA)
    both = cv2.subtract(picture, other, dtype=cv2.CV_32F) * covered[..., None]
    apart = cv2.resize(both, small, interpolation=cv2.INTER_AREA)
    # how the two differ where both are known, carried on: from near the end of the picture, then from farther
    offset, known = np.zeros((*small[::-1], 3), np.float32), np.zeros(small[::-1], np.float32)
    for sigma in (2.5, 10.0, 40.0):
        reached = cv2.GaussianBlur(weight, (0, 0), sigma)
        share = (1 - known) * np.minimum(1, 4 * reached)
        offset = offset + (share / np.maximum(reached, 1e-6))[..., None] * cv2.GaussianBlur(apart, (0, 0), sigma)
        known = known + share
    offset = offset / np.maximum(known, 1e-6)[..., None]
    filling = other[~covered] + cv2.resize(offset, covered.shape[::-1], interpolation=cv2.INTER_LINEAR)[~covered]
    whole = picture.copy()
    whole[~covered] = np.clip(filling, 0, 255).astype(np.uint8)
    return whole


def _correlation(a: F32, b: F32) -> float:
    """Of two rows (n,)."""
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b) / (math.sqrt(float(a @ a) * float(b @ b)) + 1e-6 * len(a))


def _judge(candidate: _Candidate, q: View, r: View, level: int) -> _Candidate:
    """The candidate with its correlations in the overlap, at work resolution / level."""
    if candidate.level == level:
        return candidate
    size = q.gradient[level].shape[:2]
    matrix = q.to_level(level) @ candidate.matrix @ np.linalg.inv(r.to_level(level))
    mask = coverage(matrix, r.gradient[level].shape[:2], size)
    overlap = float(mask.mean())
    if overlap < 0.2:
        return replace(candidate, ncc=-1.0, look=-1.0, overlap=overlap, level=level)
    ncc, look = (
        _correlation(a[mask], warp(b, matrix, size)[mask])
        for a, b in ((q.gradient[level], r.gradient[level]), (q.look[level], r.look[level]))
    )
    return replace(candidate, ncc=ncc, look=look, overlap=overlap, level=level)


def _plausible(matrix: Matrix, size: tuple[int, int]) -> bool:
    """Not mirrored, scale within 0.5..2, perspective moderate."""
    if not np.isfinite(matrix).all() or abs(matrix[2, 2]) < 1e-9:
        return False
    h, w = size
    scales = []
    for x, y in ((0, 0), (w, 0), (0, h), (w, h), (w / 2, h / 2)):
        d = matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2]
        if d <= 1e-6:
            return False
        jacobian = _jacobian(matrix, x, y)
        det = float(np.linalg.det(jacobian))
        if det <= 0:
            return False
        scales.append(math.sqrt(det))
        ratio = np.linalg.svd(jacobian, compute_uv=False)
    centre = scales[-1]
    if ratio[0] / max(float(ratio[1]), 1e-9) > _MAX_ANISOTROPY:
        return False
    return _MIN_SCALE <= centre <= _MAX_SCALE and max(abs(s / centre - 1) for s in scales) <= _MAX_PERSPECTIVE


def _jacobian(matrix: Matrix, x: float, y: float) -> Matrix:
    d = matrix[2] @ (x, y, 1)
    u, v = (matrix[0] @ (x, y, 1)) / d, (matrix[1] @ (x, y, 1)) / d
    return np.asarray((matrix[:2, :2] - np.outer((u, v), matrix[2, :2])) / d, np.float64)


def _sift(q: View, r: View) -> list[_Candidate]:
    """Feature matches with a similarity and a homography, for parts rich in detail seen in strong perspective or cut off."""
    (kq, dq), (kr, dr) = q.sift, r.sift
    if dq is None or dr is None or len(kq) < 8 or len(kr) < 8:
        return []
    pairs = cv2.BFMatcher().knnMatch(dr, dq, k=2)
    good = [p[0] for p in pairs if len(p) == 2 and p[0].distance < 0.8 * p[1].distance]
    if len(good) < 8:
        return []
    src = (np.array([kr[m.queryIdx].pt for m in good], np.float64) + 0.5) / _SIFT_SHRINK
    dst = (np.array([kq[m.trainIdx].pt for m in good], np.float64) + 0.5) / _SIFT_SHRINK
    found = []
    cv2.setRNGSeed(0)  # the same pair must give the same registration every time
    similarity, inliers = cv2.estimateAffinePartial2D(src, dst, method=cv2.RANSAC, ransacReprojThreshold=2.5)
    if similarity is not None and int(inliers.sum()) >= 6:
        found.append(np.vstack([similarity, [0, 0, 1]]))
    homography, inliers = cv2.findHomography(src, dst, cv2.USAC_MAGSAC, 2.0)
    if homography is not None and int(inliers.sum()) >= 12:
        found.append(np.asarray(homography, np.float64))
    return [_Candidate("sift", m) for m in found if _plausible(m, r.size)]


def _shrunk(grey: F32) -> NDArray[np.uint8]:
    return cv2.resize(grey, None, fx=_SIFT_SHRINK, fy=_SIFT_SHRINK, interpolation=cv2.INTER_AREA).astype(np.uint8)


def _rotation_search(q: View, r: View, scales: Sequence[float]) -> list[_Candidate]:
    """Best rotations and scales, each with its best shift by correlation of the small gradient images (FFT)."""
    gq, gr, side = q.gradient[_SEARCH_LEVEL], r.gradient[_SEARCH_LEVEL], _SEARCH_SIDE
    poses = [(a, s) for s in scales for a in _ANGLES]
    known = [r.spectra(s) for s in scales]
    spectra, norms = (np.concatenate(parts) for parts in zip(*known, strict=True))
    surface = scipy.fft.irfft2(spectra * q.spectrum, s=(side, side)).reshape(len(poses), -1)
    place = surface.argmax(1)
    peak = surface[np.arange(len(poses)), place] / (norms + 1e-9)
    (qh, qw), (rh, rw) = gq.shape, gr.shape
    to_q, to_r = np.linalg.inv(q.to_level(_SEARCH_LEVEL)), r.to_level(_SEARCH_LEVEL)
    found: list[_Candidate] = []
    taken: list[float] = []
    for i in np.argsort(-peak):
        angle, scale = poses[i]
        if any(abs((angle - a + 180) % 360 - 180) <= 1.1 * _SEARCH_DEG for a in taken):
            continue  # a neighbour of a better pose: ECC ends up in the same place
        y, x = divmod(int(place[i]), side)
        dx, dy = ((v + side // 2) % side - side // 2 for v in (x, y))
        c, s = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
        to_origin = np.array([[1, 0, -rw / 2], [0, 1, -rh / 2], [0, 0, 1.0]])
        turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1.0]])
        back = np.array([[1, 0, qw / 2 + dx], [0, 1, qh / 2 + dy], [0, 0, 1.0]])
        taken.append(angle)
        found.append(_Candidate("rotation-search", to_q @ back @ turn @ to_origin @ to_r))
        if len(found) == _MAX_PLACES:
            break
    return found


def _on_canvas(gradient: F32) -> F32:
    """In the middle of a larger square, the background at 0: turning and shifting then cut nothing off."""
    side = _SEARCH_SIDE
    out = np.zeros((side, side), np.float32)
    y, x = (side - gradient.shape[0]) // 2, (side - gradient.shape[1]) // 2
    out[y : y + gradient.shape[0], x : x + gradient.shape[1]] = gradient - np.median(gradient)
    return out


def _refine(candidate: _Candidate, q: View, r: View, level: int, iterations: int, homography: bool) -> _Candidate:
    """ECC refinement at work resolution / level; the candidate unchanged if ECC fails or makes it worse."""
    before = _judge(candidate, q, r, level)
    to_q, to_r = q.to_level(level), r.to_level(level)
    # ECC maps template (query) px to input (reference) px
    start = _HALF @ np.linalg.inv(to_q @ candidate.matrix @ np.linalg.inv(to_r)) @ _UNHALF
    start = start / start[2, 2]
    motion = cv2.MOTION_HOMOGRAPHY if homography else cv2.MOTION_AFFINE
    warp = np.ascontiguousarray(start if homography else start[:2], dtype=np.float32)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, iterations, 1e-3)
    template, moving = q.gradient[level], r.gradient[level]
    everything = np.full(moving.shape, 255, np.uint8)
    try:
        _, found = cv2.findTransformECC(template, moving, warp, motion, criteria, everything, 5 if level == 1 else 3)
    except cv2.error:  # ECC does not converge
        return before
    full = np.asarray(found if homography else np.vstack([found, [0, 0, 1]]), np.float64)
    if abs(np.linalg.det(full)) < 1e-9:
        return before
    matrix = np.linalg.inv(to_q) @ np.linalg.inv(_UNHALF @ full @ _HALF) @ to_r
    matrix = matrix / matrix[2, 2]
    if not _plausible(matrix, r.size):
        return before
    method = candidate.method.removesuffix("+ecc") + "+ecc"
    after = _judge(_Candidate(method, matrix), q, r, level)
    return after if after.ncc > before.ncc else before


def _best(candidates: Iterable[_Candidate], q: View, r: View) -> _Candidate | None:
    """Coarse to fine: all at a quarter of the resolution, those in the lead also at half of it, as homographies."""
    coarse = [_refine(c, q, r, 4, 15, c.method == "sift") for c in candidates]
    usable = (c for c in coarse if c.overlap >= MIN_OVERLAP and c.score >= _MIN_COARSE_SCORE)
    coarse = sorted(usable, key=lambda c: -c.score)[:3]
    coarse = [c for c in coarse if c.score >= coarse[0].score - _MAX_SCORE_LAG]
    tilted = [_refine(c, q, r, 4, 10, True) for c in coarse]  # in two steps: perspective straight away may run off
    fine = [_refine(c, q, r, 2, 10, True) for c in tilted]
    return max(fine, key=lambda c: c.score, default=None)


def _residual(candidate: _Candidate, q: View, r: View) -> float | None:
    """Median of what is left over, in work px; None if no tile has texture."""
    moves = _left_over(candidate, q, r)
    return float(np.median(moves)) if moves else None


def _left_over(candidate: _Candidate, q: View, r: View) -> list[float]:
    """How far each textured tile is still displaced, by phase correlation, in work px."""
    if not q.textured:
        return []
    gq = q.gradient[1]
    warped = warp(r.gradient[1], candidate.matrix, q.size)
    mask = coverage(candidate.matrix, r.size, q.size)
    tile = q.textured[0][0].stop - q.textured[0][0].start
    window = cv2.createHanningWindow((tile, tile), cv2.CV_32F)
    moves = []
    for box in q.textured:
        if mask[box].mean() < 0.9:
            continue
        # phaseCorrelate multiplies the window into its arguments: it must get copies
        (dx, dy), response = cv2.phaseCorrelate(warped[box].copy(), gq[box].copy(), window)
        if response > 0.15:
            moves.append(math.hypot(dx, dy))
    return moves


def _register(q: View, r: View) -> tuple[_Candidate, float | None]:
    """The best candidate and its residual in work px, without judging whether it is good enough."""
    # 1. a fixed camera: the cheapest answer, unless some rotation fits better
    resize = np.diag([q.size[1] / r.size[1], q.size[0] / r.size[0], 1.0])
    identity = _judge(_Candidate("identity", resize), q, r, 1)
    moves = _left_over(identity, q, r) if identity.ncc >= _MIN_NCC_FIXED else []
    in_place = bool(moves) and float(np.median(moves)) <= _MAX_RESIDUAL_FIXED_PX
    # under a little perspective half of a part may lie in place, but so it may seem under another lamp
    everywhere = in_place and float(np.quantile(moves, _IN_PLACE_PART)) <= _MAX_RESIDUAL_FIXED_PX
    turned = _rotation_search(q, r, (1.0,))
    upright = bool(turned) and abs(angle_and_scale(turned[0].matrix, r.size)[0]) < _SEARCH_DEG
    if everywhere and upright:
        return identity, float(np.median(moves))
    # 2. about the same scale, any rotation
    placed = identity.ncc >= _MIN_NCC_PLACED
    best = None if upright or placed else _best(turned, q, r)
    unturned = None
    if best is None or best.score < _UNQUESTIONED_SCORE:
        unturned = _best([_Candidate("identity", resize)], q, r)
        if unturned is None or not upright or unturned.score < _UNQUESTIONED_SCORE:
            best = _preferred(unturned, best or _best(turned, q, r), _MAX_ERROR_RATIO if placed else 1.0)
        else:
            best = unturned
    # 3. other scales; 4. matched features, for strong perspective and parts that leave the frame
    if (best is None or best.score < _ACCEPT_SCORE) and not (best is unturned and identity.ncc >= _MIN_NCC_FIXED):
        best = _preferred(best, _best(_rotation_search(q, r, _SCALES), q, r))
        if best is None or best.score < _ACCEPT_SCORE:
            best = _preferred(best, _best(_sift(q, r), q, r))
    if best is not None:
        best = _refine(best, q, r, 1, 4, True)
        # identity wins ties: a fixed camera is the common case; where it seems in place, clearly more must be explained, too
        needed = max(identity.ncc + 0.02, 1 - _MAX_ERROR_RATIO * (1 - identity.ncc) if in_place else 0.0)
        if best.overlap >= MIN_OVERLAP and best.ncc > needed:
            return best, _residual(best, q, r)
    return identity, _residual(identity, q, r)


def _preferred(first: _Candidate | None, later: _Candidate | None, max_error_ratio: float = 0.95) -> _Candidate | None:
    """The later one only if it explains clearly more: by chance and symmetry many candidates are about as good."""
    if first is None or later is None:
        return first or later
    return later if 1 - later.score < max_error_ratio * (1 - first.score) else first


def align(query: RgbImage | View, reference: RgbImage | View) -> Alignment:
    """Register `reference` to `query`, both (H, W, 3) uint8 RGB of any size, or their Views.

    Deterministic; never raises on odd content.
    """
    q, r = (v if isinstance(v, View) else View(v) for v in (query, reference))
    best, residual = _register(q, r)
    matrix = np.linalg.inv(q.from_original) @ best.matrix @ r.from_original
    matrix = matrix / matrix[2, 2]
    problems: list[tuple[str, str]] = []  # for people, for the model
    residual_px = None if residual is None else residual / float(q.from_original[0, 0])
    found = best.method != "identity"
    needed = _MIN_SCORE_FOUND + _SCORE_PER_UNCOVERED * (1 - best.overlap)
    if best.ncc < (_MIN_NCC_FOUND if found else MIN_NCC):
        problems.append((f"edge correlation {best.ncc:z.2f}", f"edges correlate only {best.ncc:.2f}"))
    elif found and best.score < needed:
        said = f"edge and intensity correlation {best.score:.2f}, at least {needed:.2f} needed"
        problems.append((said, f"edges and intensities correlate only {best.score:.2f} (needs {needed:.2f})"))
    if best.overlap < MIN_OVERLAP:
        problems.append((f"overlap {100 * best.overlap:.0f} %", f"only {best.overlap:.0%} of the photo is covered"))
    if residual is not None and residual > MAX_RESIDUAL_PART * max(q.size):
        problems.append((f"residual {residual_px:.1f} px", f"{residual:.1f} px of displacement remain"))
    if problems:
        (qh, qw), (rh, rw) = q.original_size, r.original_size
        said, trained = (", ".join(texts) for texts in zip(*problems, strict=True))
        return Alignment(
            method="none", ok=False, matrix=np.diag([qw / rw, qh / rh, 1.0]), residual_px=None, overlap=1.0, ncc=best.ncc,
            angle_deg=0.0, scale=1.0, reason=f"Registration rejected ({said}); compared without registration",
            trained_reason=f"no honest registration: {trained}; compared unregistered",
        )  # fmt: skip
    return registered(best.method, matrix, residual_px, best.overlap, best.ncc, r.original_size)


def edge_correlation_at(query: RgbImage | View, reference: RgbImage | View, matrix: Matrix) -> float:
    """-1..1, `Alignment.ncc` of a registration that is known from elsewhere. matrix: (3, 3), reference px -> query px."""
    q, r = (v if isinstance(v, View) else View(v) for v in (query, reference))
    return _judge(_Candidate("", q.from_original @ matrix @ np.linalg.inv(r.from_original)), q, r, 1).ncc


def registered(
    method: str, matrix: Matrix, residual_px: float | None, overlap: float, ncc: float, size: tuple[int, int]
) -> Alignment:
    """An accepted registration, in words too. size: (H, W) of the reference; the others as in `Alignment`."""
    rotation, scale = angle_and_scale(matrix, size)
    left = "" if residual_px is None else f", residual {residual_px:.1f} px"
    correlation = f"edge correlation {ncc:z.2f}, overlap {100 * overlap:.0f} %"
    return Alignment(
        method=method, ok=True, matrix=matrix, residual_px=residual_px, overlap=overlap, ncc=ncc,
        angle_deg=rotation, scale=scale, reason=f"Registered by {method} ({correlation}{left}){_turn(rotation)}",
        trained_reason=f"{method}: edges correlate {ncc:.2f}, overlap {overlap:.0%}{left}",
    )  # fmt: skip


def carried(
    known: Alignment, between: Matrix, residual_px: float | None, size: tuple[int, int], query_size: tuple[int, int]
) -> Alignment:
    """How an image of `size` (H, W) lies on a query of `query_size`, from how a reference does that it is registered to.

    known: registration of that reference to the query. between: (3, 3), the image's px -> the reference's, with what that
    registration left over, in px of the image.
    """
    matrix = known.matrix @ between
    matrix = matrix / matrix[2, 2]
    if np.allclose(matrix, known.matrix, rtol=0, atol=1e-9) and not residual_px:
        return known  # the reference itself, or one of the same fixed camera
    coarse = [tuple(max(1, round(64 * n / max(whole))) for n in whole) for whole in (query_size, size)]
    to, back = (np.diag([c[1] / n[1], c[0] / n[0], 1.0]) for c, n in zip(coarse, (query_size, size), strict=True))
    overlap = float(coverage(to @ matrix @ np.linalg.inv(back), *reversed(coarse)).mean())  # type: ignore[arg-type]
    scale = angle_and_scale(matrix, size)[1]
    parts = [r for r in (known.residual_px, None if residual_px is None else residual_px * scale) if r is not None]
    residual = math.hypot(*parts) if parts else None
    return registered(known.method, matrix, residual, overlap, known.ncc, size)


def turn_in_words(angle_deg: float) -> str:
    """`turned by 180 degrees`; near a right angle, that angle is said."""
    quarter = 90 * round(angle_deg / 90)
    said = quarter if abs(angle_deg - quarter) < UPRIGHT_DEG else round(angle_deg)
    way = "" if abs(said) in (0, 180) else " clockwise" if said > 0 else " counter-clockwise"
    return f"turned by {abs(said)} degrees{way}"


def _turn(angle_deg: float) -> str:
    return "" if abs(angle_deg) < UPRIGHT_DEG else f"; the part lies {turn_in_words(angle_deg)}"


def angle_and_scale(matrix: Matrix, size: tuple[int, int]) -> tuple[float, float]:
    """In-plane rotation in degrees (-180..180, clockwise as seen) and scale at the reference's centre."""
    jacobian = _jacobian(matrix, size[1] / 2, size[0] / 2)
    angle = math.degrees(math.atan2(jacobian[1, 0], jacobian[0, 0]))
    return angle, math.sqrt(max(float(np.linalg.det(jacobian)), 1e-12))
