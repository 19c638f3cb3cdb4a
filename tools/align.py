"""Registration of a golden sample to the query photo: any in-plane rotation, shift, scale, moderate perspective.

Candidates (identity, SIFT + MAGSAC homography, exhaustive rotation search) are judged by one yardstick, the correlation of
their gradient images, the winner is refined by ECC (Evangelidis & Psarakis, 2008), and the remaining displacement is
measured tile by tile with phase correlation, independent of what the optimiser believed. When nothing fits, `ok` is False
and the pair is compared unregistered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.images import RgbImage

_WORK_PX = 256  # long side, in px, at which registration works
_SEARCH_PX = 96  # and at which it tries rotations
_SEARCH_STEP_DEG = 10.0
MIN_NCC = 0.30  # gradient correlation below which even the fixed camera's identity is no honest registration
_MIN_NCC_FOUND = 0.45  # a registration that was searched for had more chances to fit by luck
_FAST_NCC = 0.60  # identity at least this good and with under half a pixel of residual is not searched further
MIN_OVERLAP = 0.5
MAX_RESIDUAL = 0.02  # of the long side
_MAX_PERSPECTIVE = 0.35  # relative change of local scale across the image
_MIN_SCALE, _MAX_SCALE = 0.5, 2.0
_MAX_ANISOTROPY = 1.25  # ratio of the two local scales at the centre

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Alignment:
    """How the reference lies on the query.

    matrix: (3, 3) float64, reference px -> query px, both at original resolution; the plain resize when not ok.
    residual_px: median remaining displacement in query px, None where no textured tile could be measured.
    overlap: part 0..1 of the query that the warped reference covers. ncc: gradient correlation -1..1 in the overlap.
    """

    method: str
    ok: bool
    matrix: Matrix
    residual_px: float | None
    overlap: float
    ncc: float
    angle_deg: float
    scale: float
    reason: str


@dataclass(frozen=True)
class _Candidate:
    method: str
    matrix: Matrix  # reference work px -> query work px
    ncc: float
    overlap: float


def _work_grey(image: RgbImage, long_side: int) -> tuple[NDArray[np.float32], Matrix]:
    """Grey float32 0..255 with at most `long_side` px, and the matrix original px -> work px (pixel centres at .5)."""
    h, w = image.shape[:2]
    f = min(1.0, long_side / max(h, w))
    size = (max(8, round(w * f)), max(8, round(h * f)))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if size != (w, h):
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return grey.astype(np.float32), np.diag([size[0] / w, size[1] / h, 1.0])


def _gradient(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Gradient magnitude, compressed so that a few strong edges do not rule and light changes matter little."""
    smooth = cv2.GaussianBlur(grey, (0, 0), 1.2)
    gx, gy = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    return np.asarray(cv2.GaussianBlur(np.sqrt(cv2.magnitude(gx, gy) + 1.0), (0, 0), 1.0), dtype=np.float32)


def _warp(image: NDArray, matrix: Matrix, size: tuple[int, int], border: int = cv2.BORDER_REPLICATE) -> NDArray:
    """Warp by `matrix` (pixel corners at integers) to `size` (H, W)."""
    half = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1.0]])  # OpenCV puts pixel centres at integers
    m = half @ matrix @ np.linalg.inv(half)
    return np.asarray(cv2.warpPerspective(image, m, size[::-1], flags=cv2.INTER_LINEAR, borderMode=border))


def coverage(matrix: Matrix, reference_size: tuple[int, int], query_size: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) bool: query pixels that the warped reference covers."""
    ones = np.full(reference_size, 255, np.uint8)
    return _warp(ones, matrix, query_size, cv2.BORDER_CONSTANT) > 127


def warp_reference(
    reference: RgbImage, matrix: Matrix, query_size: tuple[int, int]
) -> tuple[RgbImage, NDArray[np.bool_]]:
    """The reference on the query's pixel grid, (H, W, 3) uint8, and which pixels it really covers, (H, W) bool."""
    warped = _warp(reference, matrix, query_size, cv2.BORDER_REPLICATE).astype(np.uint8)
    return warped, coverage(matrix, reference.shape[:2], query_size)


def _judge(method: str, matrix: Matrix, gq: NDArray[np.float32], gr: NDArray[np.float32]) -> _Candidate:
    """Gradient correlation in the overlap, at work resolution."""
    mask = coverage(matrix, gr.shape[:2], gq.shape[:2])
    overlap = float(mask.mean())
    if overlap < 0.2:
        return _Candidate(method, matrix, -1.0, overlap)
    a, b = gq[mask], _warp(gr, matrix, gq.shape[:2])[mask]
    a, b = a - a.mean(), b - b.mean()
    ncc = float((a * b).mean() / (a.std() * b.std() + 1e-6))
    return _Candidate(method, matrix, ncc, overlap)


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
        u, v = (matrix[0] @ (x, y, 1)) / d, (matrix[1] @ (x, y, 1)) / d
        jacobian = (matrix[:2, :2] - np.outer((u, v), matrix[2, :2])) / d
        det = float(np.linalg.det(jacobian))
        if det <= 0:
            return False
        scales.append(math.sqrt(det))
        ratio = np.linalg.svd(jacobian, compute_uv=False)
    centre = scales[-1]
    if ratio[0] / max(float(ratio[1]), 1e-9) > _MAX_ANISOTROPY:
        return False
    return _MIN_SCALE <= centre <= _MAX_SCALE and max(abs(s / centre - 1) for s in scales) <= _MAX_PERSPECTIVE


def _sift(q: NDArray[np.float32], r: NDArray[np.float32]) -> list[tuple[str, Matrix]]:
    sift = cv2.SIFT_create(nfeatures=600, contrastThreshold=0.02)
    kq, dq = sift.detectAndCompute(q.astype(np.uint8), None)
    kr, dr = sift.detectAndCompute(r.astype(np.uint8), None)
    if dq is None or dr is None or len(kq) < 8 or len(kr) < 8:
        return []
    pairs = cv2.BFMatcher().knnMatch(dr, dq, k=2)
    good = [p[0] for p in pairs if len(p) == 2 and p[0].distance < 0.8 * p[1].distance]
    if len(good) < 8:
        return []
    src = np.array([kr[m.queryIdx].pt for m in good], np.float64) + 0.5
    dst = np.array([kq[m.trainIdx].pt for m in good], np.float64) + 0.5
    out: list[tuple[str, Matrix]] = []
    cv2.setRNGSeed(0)  # the same pair must give the same registration every time
    similarity, inliers = cv2.estimateAffinePartial2D(src, dst, method=cv2.RANSAC, ransacReprojThreshold=2.5)
    if similarity is not None and int(inliers.sum()) >= 6:
        out.append(("sift", np.vstack([similarity, [0, 0, 1]])))
    homography, inliers = cv2.findHomography(src, dst, cv2.USAC_MAGSAC, 2.0)
    if homography is not None and int(inliers.sum()) >= 12:
        out.append(("sift", np.asarray(homography, np.float64)))
    return out


def _rotation_search(
    q: NDArray[np.float32], r: NDArray[np.float32], gq: NDArray, gr: NDArray
) -> list[tuple[str, Matrix]]:
    """Best rotations about the centre with shift by phase correlation, for parts with too little texture for SIFT."""
    f = _SEARCH_PX / max(*q.shape, *r.shape)
    side = _SEARCH_PX + 2 * (_SEARCH_PX // 4)

    def canvas(g: NDArray) -> NDArray[np.float32]:
        small = cv2.resize(
            g, (max(8, round(g.shape[1] * f)), max(8, round(g.shape[0] * f))), interpolation=cv2.INTER_AREA
        )
        small = small - np.median(small)
        out = np.zeros((side, side), np.float32)
        y, x = (side - small.shape[0]) // 2, (side - small.shape[1]) // 2
        out[y : y + small.shape[0], x : x + small.shape[1]] = small
        return out

    cq, cr = canvas(gq), canvas(gr)
    spectrum = np.fft.rfft2(cq)
    centre = (side / 2 - 0.5, side / 2 - 0.5)
    scored = []
    for angle in np.arange(0.0, 360.0, _SEARCH_STEP_DEG):
        rotated = cv2.warpAffine(cr, cv2.getRotationMatrix2D(centre, float(angle), 1.0), (side, side))
        norm = float(np.linalg.norm(rotated) * np.linalg.norm(cq)) + 1e-6
        correlation = np.fft.irfft2(spectrum * np.conj(np.fft.rfft2(rotated)), s=(side, side))
        y, x = np.unravel_index(int(correlation.argmax()), correlation.shape)
        shift = [(v + side // 2) % side - side // 2 for v in (int(x), int(y))]
        scored.append((float(correlation.max()) / norm, float(angle), shift))
    scored.sort(key=lambda s: -s[0])
    out: list[tuple[str, Matrix]] = []
    (qh, qw), (rh, rw) = q.shape, r.shape
    for _, angle, shift in scored[:4]:
        a = math.radians(angle)
        c, s = math.cos(a), math.sin(a)
        # about the reference's centre to the query's centre plus shift; same pixel size on both sides
        rot = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1.0]])
        to_origin = np.array([[1, 0, -rw / 2], [0, 1, -rh / 2], [0, 0, 1.0]])
        back = np.array([[1, 0, qw / 2 + shift[0] / f], [0, 1, qh / 2 + shift[1] / f], [0, 0, 1.0]])
        out.append(("rotation-search", back @ rot @ to_origin))
    return out


def _refine(candidate: _Candidate, gq: NDArray[np.float32], gr: NDArray[np.float32], homography: bool) -> _Candidate:
    """ECC refinement; returns the candidate unchanged if ECC fails or makes it worse."""
    half = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1.0]])
    # ECC maps template (query) px to input (reference) px
    start = half @ np.linalg.inv(candidate.matrix) @ np.linalg.inv(half)
    start = start / start[2, 2]
    motion = cv2.MOTION_HOMOGRAPHY if homography else cv2.MOTION_AFFINE
    warp = np.ascontiguousarray(start if homography else start[:2], dtype=np.float32)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-4)
    try:
        _, warp = cv2.findTransformECC(gq, gr, warp, motion, criteria, np.full(gr.shape, 255, np.uint8), 5)
    except cv2.error:  # ECC does not converge
        return candidate
    full = np.asarray(warp, np.float64) if homography else np.vstack([warp, [0, 0, 1]]).astype(np.float64)
    matrix = np.linalg.inv(half) @ np.linalg.inv(full) @ half
    matrix = matrix / matrix[2, 2]
    if not _plausible(matrix, gr.shape[:2]):
        return candidate
    refined = _judge(candidate.method.removesuffix("+ecc") + "+ecc", matrix, gq, gr)
    return refined if refined.ncc > candidate.ncc else candidate


def _residual(candidate: _Candidate, gq: NDArray[np.float32], gr: NDArray[np.float32]) -> float | None:
    """Median displacement in work px over textured tiles, by phase correlation; None if no tile has texture."""
    warped = _warp(gr, candidate.matrix, gq.shape[:2])
    mask = coverage(candidate.matrix, gr.shape[:2], gq.shape[:2])
    h, w = gq.shape
    tile = max(24, min(h, w) // 4)
    window = cv2.createHanningWindow((tile, tile), cv2.CV_32F)
    texture = max(float(gq.std()), 1e-3)
    moves = []
    for y in range(0, h - tile + 1, tile // 2):
        for x in range(0, w - tile + 1, tile // 2):
            box = np.s_[y : y + tile, x : x + tile]
            if mask[box].mean() < 0.9 or gq[box].std() < 0.5 * texture:
                continue
            (dx, dy), response = cv2.phaseCorrelate(warped[box].copy(), gq[box].copy(), window)
            if response > 0.15:
                moves.append(math.hypot(dx, dy))
    return float(np.median(moves)) if moves else None


def align(query: RgbImage, reference: RgbImage) -> Alignment:
    """Register `reference` to `query`, both (H, W, 3) uint8 RGB of any size. Deterministic; never raises on odd content."""
    q, to_q = _work_grey(query, _WORK_PX)
    r, to_r = _work_grey(reference, _WORK_PX)
    gq, gr = _gradient(q), _gradient(r)
    resize = np.diag([q.shape[1] / r.shape[1], q.shape[0] / r.shape[0], 1.0])
    best = _judge("identity", resize, gq, gr)
    residual = _residual(best, gq, gr)
    limit = MAX_RESIDUAL * max(q.shape)
    if not (best.ncc >= _FAST_NCC and residual is not None and residual <= 0.5):
        plausible = [_judge(m, t, gq, gr) for m, t in _sift(q, r) if _plausible(t, r.shape)]
        if max([best.ncc, *(c.ncc for c in plausible)]) < _FAST_NCC:
            plausible += [_judge(m, t, gq, gr) for m, t in _rotation_search(q, r, gq, gr) if _plausible(t, r.shape)]
        # identity stays in the race, and wins ties: a fixed camera is the common case
        field = [best, *sorted((c for c in plausible if c.overlap >= MIN_OVERLAP), key=lambda c: -c.ncc)[:2]]
        refined = [_refine(c, gq, gr, homography=c.method == "sift") for c in field]
        winner = max([*field, *refined], key=lambda c: c.ncc)
        if winner.ncc > best.ncc + 0.02:
            best = winner
            residual = _residual(best, gq, gr)
    matrix = np.linalg.inv(to_q) @ best.matrix @ to_r
    matrix = matrix / matrix[2, 2]
    problems = []
    needed = MIN_NCC if best.method == "identity" else _MIN_NCC_FOUND
    if best.ncc < needed:
        problems.append(f"edges correlate only {best.ncc:.2f} (needs {needed})")
    if best.overlap < MIN_OVERLAP:
        problems.append(f"only {best.overlap:.0%} of the photo is covered")
    if residual is not None and residual > limit:
        problems.append(f"{residual:.1f} px of displacement remain")
    unit = to_q[0, 0]
    if problems:
        plain = np.diag([query.shape[1] / reference.shape[1], query.shape[0] / reference.shape[0], 1.0])
        reason = "no honest registration: " + ", ".join(problems) + "; compared unregistered"
        return Alignment("none", False, plain, None, 1.0, best.ncc, 0.0, 1.0, reason)
    rotation, scale = _angle_scale(matrix, reference.shape[:2])
    residual_px = None if residual is None else residual / unit
    reason = f"{best.method}: edges correlate {best.ncc:.2f}, overlap {best.overlap:.0%}"
    if residual_px is not None:
        reason += f", residual {residual_px:.1f} px"
    return Alignment(best.method, True, matrix, residual_px, best.overlap, best.ncc, rotation, scale, reason)


def _angle_scale(matrix: Matrix, size: tuple[int, int]) -> tuple[float, float]:
    """In-plane rotation in degrees (-180..180, clockwise as seen) and scale at the reference's centre."""
    x, y = size[1] / 2, size[0] / 2
    d = matrix[2] @ (x, y, 1)
    u, v = (matrix[0] @ (x, y, 1)) / d, (matrix[1] @ (x, y, 1)) / d
    jacobian = (matrix[:2, :2] - np.outer((u, v), matrix[2, :2])) / d
    return math.degrees(math.atan2(jacobian[1, 0], jacobian[0, 0])), math.sqrt(
        max(float(np.linalg.det(jacobian)), 1e-12)
    )
