"""Running statistics: averages, debiasing, what must not spoil them, merging."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn

BATCHES = np.random.default_rng(0).normal(3, 2, (5, 16, 3)).astype(np.float32)


def run(stats, batches=BATCHES, **kwargs):
    for batch in batches:
        stats = jn.update_stats(stats, jn.compute_moments(batch, 0), **kwargs)
    return stats


class UpdateTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_first_update_gives_the_first_batch_exactly(self):
        moments = jn.compute_moments(BATCHES[0], 0)
        stats = self.variant(jn.update_stats)(jn.init_stats(3), moments)
        np.testing.assert_array_equal(stats.mean, moments.mean)
        np.testing.assert_allclose(stats.var, moments.var, rtol=1e-7)
        np.testing.assert_allclose(stats.weight, 0.01, rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_prior_weight_1_is_the_plain_average_from_0_and_1(self):
        step = self.variant(jn.update_stats)
        stats = jn.init_stats(3, prior_weight=1.0)
        mean, var = np.zeros(3, np.float32), np.ones(3, np.float32)
        for batch in BATCHES:
            moments = jn.compute_moments(batch, 0)
            stats = step(stats, moments)
            # Flax's line, in its own precision.
            mean = np.float32(0.99) * mean + np.float32(1 - 0.99) * moments.mean
            var = np.float32(0.99) * var + np.float32(1 - 0.99) * moments.var
        np.testing.assert_allclose(stats.mean, mean, rtol=1e-7)
        np.testing.assert_allclose(stats.var, var, rtol=2e-7)
        assert stats.weight == 1.0


def test_exponential_average_is_unbiased():
    weights = 0.9 ** np.arange(4, -1, -1)
    means = BATCHES.astype(np.float64).mean(1)
    stats = run(jn.init_stats(3), decay=0.9)
    np.testing.assert_allclose(stats.mean, weights @ means / weights.sum(), rtol=1e-6)
    np.testing.assert_allclose(stats.weight, 1 - 0.9**5, rtol=1e-6)


@pytest.mark.parametrize("decay", [0.99, 0.999, 0.9999])
def test_an_average_of_equal_batches_stays_theirs(decay):
    """However the weight is rounded, for as long as it takes to fill."""
    moments = jn.Moments(jnp.float32(64), jnp.array([0.3, 7.7, 123.4]), jnp.full(3, 64))

    def step(_, stats):
        return jn.update_stats(stats, moments, decay=decay)

    stats = jax.jit(lambda s: jax.lax.fori_loop(0, 50_000, step, s))(jn.init_stats(3))
    np.testing.assert_allclose(stats.mean, moments.mean, rtol=1e-7)
    np.testing.assert_allclose(stats.var, moments.var, rtol=1e-7)


@pytest.mark.parametrize("decay", [0.99, 0.9999])
def test_a_long_average_keeps_its_digits(decay):
    """Against the recursion in float64, on batches of N(1e4, 1)."""
    means, variances = np.random.default_rng(0).normal(1e4, 1, (2, 20_000, 3))
    variances = np.abs(variances - 1e4)

    def step(stats, batch):
        moments = jn.Moments(jnp.float32(1), *batch)
        return jn.update_stats(stats, moments, decay=decay), None

    batches = means.astype(np.float32), variances.astype(np.float32)
    stats, _ = jax.jit(lambda s: jax.lax.scan(step, s, batches))(jn.init_stats(3))
    share = decay ** np.arange(len(means) - 1, -1, -1)[:, None]
    for got, values in zip(stats[:2], batches, strict=True):
        exact = (share * values.astype(np.float64)).sum(0) / share.sum()
        np.testing.assert_allclose(got, exact, rtol=1e-5)


def test_cumulative_average_weighs_all_batches_alike():
    stats = run(jn.init_stats(3), decay=None)
    np.testing.assert_allclose(stats.mean, BATCHES.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(
        stats.var, BATCHES.astype(np.float64).var(1).mean(0), rtol=1e-6
    )
    assert stats.weight == 5


def test_ddof_1_keeps_the_unbiased_variance():
    stats = run(jn.init_stats(3), BATCHES[:1], ddof=1)
    expected = BATCHES[0].astype(np.float64).var(0, ddof=1)
    np.testing.assert_allclose(stats.var, expected, rtol=1e-6)


@pytest.mark.parametrize("decay", [0.99, None])
@pytest.mark.parametrize(
    "moments",
    [
        jn.Moments(jnp.float32(0), jnp.zeros(3), jnp.zeros(3)),
        jn.Moments(jnp.float32(4), jnp.array([1.0, jnp.nan, 1.0]), jnp.ones(3)),
        jn.Moments(jnp.float32(4), jnp.ones(3), jnp.array([1.0, jnp.inf, 1.0])),
        jn.Moments(jnp.float32(jnp.inf), jnp.ones(3), jnp.ones(3)),
    ],
    ids=["empty", "mean not finite", "variance not finite", "count not finite"],
)
def test_a_batch_that_cannot_be_trusted_changes_nothing(moments, decay):
    stats = run(jn.init_stats(3))
    after = jax.jit(lambda s, m: jn.update_stats(s, m, decay=decay))(stats, moments)
    chex.assert_trees_all_equal(after, stats)


@pytest.mark.parametrize("decay", [0.99, None])
def test_a_single_value_holds_no_evidence_on_the_unbiased_variance(decay):
    stats = run(jn.init_stats(3))
    one = jn.compute_moments(BATCHES[0, :1], 0)
    chex.assert_trees_all_equal(jn.update_stats(stats, one, decay=decay, ddof=1), stats)


@pytest.mark.parametrize("total", [1 - 1e-7, 1, 1 + 1e-6])
def test_weights_that_add_up_to_1_hold_no_unbiased_variance(total):
    """Not to rounding either: m2 / (total - 1) would be a million times too large."""
    stats = run(jn.init_stats(3))
    weights = jnp.float32(total) * jax.nn.softmax(BATCHES[0, :, :1], axis=0)
    _, after = jn.batch_norm(BATCHES[0], stats, training=True, weights=weights, ddof=1)
    chex.assert_trees_all_equal(after, stats)


def test_a_feature_without_data_keeps_its_statistics():
    mask = jnp.array([True, False, True])
    moments = jn.compute_moments(BATCHES[0], 0, weights=mask)
    stats = run(jn.init_stats(3), BATCHES[1:2])
    after = jn.update_stats(stats, moments)
    assert after.mean[1] == stats.mean[1]
    assert after.var[1] == stats.var[1]
    assert after.mean[0] != stats.mean[0]


def test_one_weight_a_feature_debiases_each():
    mask = jnp.array([True, False, True])
    stats = jn.init_stats(3, prior_weight=jnp.zeros(3))
    stats = jn.update_stats(stats, jn.compute_moments(BATCHES[0], 0, weights=mask))
    stats = jn.update_stats(stats, jn.compute_moments(BATCHES[1], 0))
    expected = jn.compute_moments(BATCHES[1], 0).mean[1]
    np.testing.assert_allclose(stats.mean[1], expected, rtol=1e-6)
    np.testing.assert_allclose(
        stats.weight, [1 - 0.99**2, 0.01, 1 - 0.99**2], rtol=1e-5
    )


def test_stacked_moments_move_stacked_statistics():
    moments = jax.vmap(lambda x: jn.compute_moments(x, 0, weights=x[:, :1] > 3))(
        BATCHES[:3]
    )
    stats = jax.vmap(lambda _: jn.init_stats(3))(jnp.arange(3))
    stats = stats._replace(weight=jnp.full((3, 3), 0.5))
    moved = jn.update_stats(stats, moments, ddof=1)
    expected = jax.vmap(lambda s, m: jn.update_stats(s, m, ddof=1))(stats, moments)
    chex.assert_trees_all_close(moved, expected, rtol=1e-6)


def test_moments_may_be_lists():
    moments = jn.Moments(2.0, [1.0, 2.0], [1.0, 4.0])
    stats = jn.update_stats(jn.init_stats(2), moments)
    np.testing.assert_allclose(stats.mean, [1, 2])
    np.testing.assert_allclose(stats.var, [0.5, 2])


def test_decay_1_from_nothing_keeps_the_start():
    chex.assert_trees_all_equal(run(jn.init_stats(3), decay=1.0), jn.init_stats(3))


def test_decay_may_be_traced():
    update = jax.jit(lambda s, m, decay: jn.update_stats(s, m, decay=decay))
    moments = jn.compute_moments(BATCHES[0], 0)
    stats = run(jn.init_stats(3))
    chex.assert_trees_all_close(
        update(stats, moments, 0.8), jn.update_stats(stats, moments, decay=0.8)
    )


@pytest.mark.parametrize(("decay", "weight"), [(0.0, 1.0), (0.5, 0.0), (0.0, 0.0)])
def test_what_the_first_batch_replaces_has_derivatives(decay, weight):
    """Where the whole step is taken, without a rounding, it still moves with both."""
    moments = jn.compute_moments(jnp.float32(BATCHES[0]), 0)

    def moved(decay, weight, old):
        stats = jn.NormStats(old, jnp.ones(3), weight)
        return jn.update_stats(stats, moments, decay=decay).mean[0]

    def formula(decay, weight, old):
        new = decay * weight * old[0] + (1 - decay) * moments.mean[0]
        return new / (decay * weight + 1 - decay)

    at = jnp.float32(decay), jnp.float32(weight), jnp.float32([10, 20, 30])
    for order in (jax.grad, jax.hessian):
        got, expected = (jax.jit(order(f, (0, 1, 2)))(*at) for f in (moved, formula))
        chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weight", [jnp.ones(()), jnp.ones(2)], ids=["one", "each"])
def test_a_batch_that_is_not_trusted_spoils_no_gradient(weight):
    x = jnp.float32([[1, jnp.nan], [3, 2]])
    moments = jn.compute_moments(x, 0)

    def total(decay, weight):
        stats = jn.NormStats(jnp.zeros(2), jnp.ones(2), weight)
        stats = jn.update_stats(stats, moments, decay=decay)
        return jnp.sum(stats.mean) + jnp.sum(stats.var)

    at = jnp.float32(0.9), weight / 2
    backward, forward = (
        jax.jit(derivative(total, (0, 1)))(*at) for derivative in (jax.grad, jax.jacfwd)
    )
    chex.assert_tree_all_finite(backward)
    chex.assert_trees_all_close(backward, forward, rtol=1e-5)
    assert (backward[0] == 0) == (weight.ndim == 0)


@pytest.mark.parametrize(("decay", "weight"), [(0.0, 1.0), (0.9, 0.0)])
def test_the_first_batch_replaces_what_is_far_away(decay, weight):
    """So far that the step between the two is not finite."""
    far = jnp.float32([3e38])
    stats = jn.NormStats(far, far, jnp.float32(weight))
    moments = jn.Moments(jnp.float32(2), -far, jnp.float32([2]))
    stats = jn.update_stats(stats, moments, decay=decay)
    np.testing.assert_array_equal((stats.mean, stats.var), (-far, [1]))


def test_state_keeps_its_types():
    """No weak type, no promotion: a scan carries the state, and nothing recompiles."""
    with jax.enable_x64(True):
        stats = jn.init_stats(3)
        moments = jn.compute_moments(BATCHES.astype(np.float64)[0], 0)
        after = jn.update_stats(stats, moments)
    for old, new in zip(stats, after, strict=True):
        assert (old.dtype, old.weak_type) == (new.dtype, new.weak_type)
        assert new.dtype == jnp.float32


def test_merge_by_total_variance_after_one_step_is_that_of_all_data():
    shards = BATCHES.astype(np.float64)
    replicas = [
        run(jn.init_stats(3), shard[None].astype(np.float32)) for shard in shards
    ]
    merged = jn.merge_stats(replicas)
    together = shards.reshape(-1, 3)
    np.testing.assert_allclose(merged.mean, together.mean(0), rtol=1e-6)
    np.testing.assert_allclose(merged.var, together.var(0), rtol=1e-6)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *replicas)
    chex.assert_trees_all_equal(jn.merge_stats(stacked), merged)


def test_merge_of_several_steps():
    """By total variance the running means count; by average one device in turn."""
    shards = np.random.default_rng(1).normal(np.arange(3), 1.0, (4, 5, 6, 3))
    shards += np.arange(4.0)[:, None, None, None]  # replica, step, row, feature
    replicas = [
        run(jn.init_stats(3), shard.astype(np.float32), decay=None) for shard in shards
    ]
    within, means = shards.var(2).mean(1), shards.mean((1, 2))
    merged = jn.merge_stats(replicas)
    np.testing.assert_allclose(merged.var, within.mean(0) + means.var(0), rtol=1e-5)
    in_turn = run(
        jn.init_stats(3), shards.reshape(-1, 6, 3).astype(np.float32), decay=None
    )
    average = jn.merge_stats(replicas, method="average")
    np.testing.assert_allclose(average.mean, in_turn.mean, rtol=1e-5)
    np.testing.assert_allclose(average.var, in_turn.var, rtol=1e-5)


def test_merge_keeps_the_digits_of_data_far_from_zero():
    """The worst error was 1.6e-3 while deviations were from a rounded mean."""
    means = np.random.default_rng(0).normal(1e4, 1e-2, (8, 3)).astype(np.float32)
    var = jnp.full((8, 3), 1e-4)
    merged = jn.merge_stats(jn.NormStats(jnp.asarray(means), var, jnp.ones(8)))
    exact = means.astype(np.float64)
    np.testing.assert_allclose(merged.var, 1e-4 + exact.var(0), rtol=2e-6)
    np.testing.assert_allclose(merged.mean, exact.mean(0), rtol=1.2e-7)


def test_what_holds_no_evidence_is_never_multiplied():
    empty = jn.NormStats(jnp.array([jnp.nan]), jnp.array([jnp.inf]), jnp.float32(0))
    full = jn.NormStats(jnp.array([2.0]), jnp.array([3.0]), jnp.float32(1))
    merged = jn.merge_stats([empty, full])
    np.testing.assert_array_equal((merged.mean, merged.var), ([2.0], [3.0]))

    def var(weight):
        return jn.merge_stats([empty, full._replace(weight=weight)]).var[0]

    assert jax.grad(var)(jnp.float32(1)) == 0


@pytest.mark.parametrize("method", ["total_variance", "average"])
@pytest.mark.parametrize("weight", [jnp.ones(()), jnp.ones(3)], ids=["one", "each"])
def test_merge_promotes_no_ranks(weight, method):
    stats = jn.NormStats(jnp.full(3, 2.0), jnp.full(3, 3.0), weight)
    with jax.numpy_rank_promotion("raise"):
        merged = jn.merge_stats([stats] * 2, method=method)
    chex.assert_trees_all_equal(merged, stats)


@pytest.mark.parametrize("method", ["total_variance", "average"])
def test_merge_promotes_no_dtypes(method):
    """Under x64 an index of JAX is int64 where it is not told otherwise."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        stats = jn.NormStats(jnp.full(3, 2.0), jnp.full(3, 3.0), jnp.ones(()))
        merged = jn.merge_stats([stats] * 2, method=method)
    chex.assert_trees_all_equal(merged, stats)


def test_merge_by_average_leaves_out_the_spread_of_the_means():
    replicas = [run(jn.init_stats(3), batch[None]) for batch in BATCHES]
    merged = jn.merge_stats(replicas, method="average")
    np.testing.assert_allclose(
        merged.var, BATCHES.astype(np.float64).var(1).mean(0), rtol=1e-6
    )


def test_merge_passes_over_replicas_without_evidence():
    replica = run(jn.init_stats(3))
    merged = jn.merge_stats([replica, jn.init_stats(3)])
    np.testing.assert_allclose(merged.mean, replica.mean, rtol=1e-6)
    np.testing.assert_allclose(merged.var, replica.var, rtol=1e-6)
    chex.assert_trees_all_equal(
        jn.merge_stats([jn.init_stats(3)] * 2), jn.init_stats(3)
    )


@pytest.mark.parametrize("num_features", [np.ones(3), 3.0, (3, 2.0)])
def test_the_number_of_features_is_an_integer(num_features):
    with pytest.raises(TypeError, match="num_features must be an integer, or a seq"):
        jn.init_stats(num_features)


def test_the_weight_of_merged_replicas_is_the_mean_of_theirs():
    stats = jn.init_stats(3)
    merged = jn.merge_stats([stats._replace(weight=jnp.float32(w)) for w in (0.2, 0.6)])
    np.testing.assert_allclose(merged.weight, 0.4, rtol=1e-6)
