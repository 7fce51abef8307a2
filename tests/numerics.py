"""One comparison for all tensors: relative RMS and worst error, one tolerance table by dtype."""

import torch

TOLERANCE = {
    # dtype: (relative RMS error, worst error relative to the largest reference value)
    torch.float64: (1e-12, 1e-11),
    torch.float32: (2e-6, 2e-5),
    torch.float16: (1e-3, 4e-3),
    torch.bfloat16: (8e-3, 3e-2),
}
"""bfloat16 leaves room for the interpreter, which truncates where chips round to nearest."""


def assert_close(
    actual: torch.Tensor,
    expected: torch.Tensor,
    *,
    dtype: torch.dtype | None = None,
    what: str = "result",
    slack: float = 1.0,
) -> None:
    """Assert that ``actual`` equals the reference ``expected`` within its dtype's tolerance.

    Args:
        actual: what is tested.
        expected: the reference, in the same or a higher precision.
        dtype: whose tolerance applies; default the dtype of ``actual``.
        what: name used in the message.
        slack: multiplies both tolerances; use for long sums, and say why where it is used.
    """
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape} != {expected.shape}"
    if actual.numel() == 0:
        return
    rms_limit, worst_limit = TOLERANCE[dtype or actual.dtype]
    a, e = actual.detach().double().cpu(), expected.detach().double().cpu()
    finite = torch.isfinite(e)
    infinite = e.isinf()
    alike = torch.equal(a.isnan(), e.isnan()) and torch.equal(a[infinite], e[infinite])
    assert alike, f"{what}: infinities or NaNs differ"
    assert torch.isfinite(a[finite]).all(), f"{what}: not finite where the reference is"
    error = torch.where(finite, a - e, 0).abs()
    reference = torch.where(finite, e, 0)
    scale = reference.abs().max().clamp_min(1e-30)
    rms = error.square().mean().sqrt() / reference.square().mean().sqrt().clamp_min(1e-30)
    worst = error.max() / scale
    if rms > rms_limit * slack or worst > worst_limit * slack:
        flat = int(error.argmax())
        at = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), error.shape))
        raise AssertionError(
            f"{what} {tuple(a.shape)}: relative RMS error {rms:.2e} (limit {rms_limit * slack:.0e})"
            f", worst {worst:.2e} (limit {worst_limit * slack:.0e}) at {at}: "
            f"got {a[at]:.6g}, reference {e[at]:.6g}"
        )


def assert_like_torch(
    actual: torch.Tensor,
    torch_result: torch.Tensor,
    exact: torch.Tensor,
    *,
    factor: float = 2.0,
    what: str = "result",
) -> None:
    """The FlashAttention rule: no worse than ``factor`` times what torch itself gets wrong.

    Args:
        actual: what is tested, in some dtype.
        torch_result: the same formula in plain torch operations of that dtype.
        exact: the same in float32 or float64.
        factor: 2, or 3 where a tanh is in the formula.

    Reference: Dao 2023, FlashAttention-2, the tests of its repository.
    """
    assert actual.dtype == torch_result.dtype, f"{what}: {actual.dtype} != {torch_result.dtype}"
    assert actual.shape == torch_result.shape == exact.shape, f"{what}: shapes differ"
    if actual.numel() == 0:
        return
    exact = exact.detach().double().cpu()
    error = (actual.detach().double().cpu() - exact).abs().max()
    allowed = (torch_result.detach().double().cpu() - exact).abs().max()
    noise = torch.finfo(actual.dtype).eps * exact.abs().max()  # one unit in the last place
    limit = factor * allowed + 2 * noise
    message = f"{what}: error {error:.3e}, torch's own {allowed:.3e}, limit {limit:.3e}"
    assert error <= limit, message
