"""Every algorithm once more, as plainly as possible: the workers are the rows of x.

Each function but the last takes the gradient of all workers `[n, d] -> [n, d]`, the
start, the learning rate, the number of steps and the mixing matrix, and returns
`[n, d]`.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import scipy.fft


def gossip(gradient, x, learning_rate, steps, W, rate=1.0):
    for _ in range(steps):
        y = x - learning_rate * gradient(x)
        x = (1 - rate) * y + rate * W @ y
    return x


def gossip_in_time(matrices):
    def run(gradient, x, learning_rate, steps, W):
        for t in range(steps):
            x = _at(matrices, x, t) @ (x - learning_rate * gradient(x))
        return x

    return run


def _at(matrices, x, t):
    """The matrix of step t between the rows of x."""
    period = matrices(len(x))
    return period[t % len(period)]


def gossip_bfloat16(gradient, x, learning_rate, steps, W):
    """Everybody calculates with rounded models, and keeps what they leave out."""
    for _ in range(steps):
        y = x - learning_rate * gradient(x)
        x = y + W @ bfloat16(y) - bfloat16(y)
    return x


def bfloat16(x):
    return np.asarray(x, ml_dtypes.bfloat16).astype(np.float64)


def gossip_overlap(gradient, x, learning_rate, steps, W, rate=1.0):
    for _ in range(steps):
        x = (1 - rate) * x + rate * W @ x - learning_rate * gradient(x)
    return x


def gossip_every(k):
    def run(gradient, x, learning_rate, steps, W):
        for step in range(1, steps + 1):
            x = x - learning_rate * gradient(x)
            if step % k == 0:
                x = W @ x
        return x

    return run


def sparse(selection, fraction):
    """Only some coordinates of the leaves b (2 entries) and w (4) are averaged."""

    def run(gradient, x, learning_rate, steps, W):
        for step in range(steps):
            x = x - learning_rate * gradient(x)
            for c in _selected(selection, fraction, step, (2, 4)):
                x[:, c] = W @ x[:, c]
        return x

    return run


def _selected(selection, p, step, sizes):
    """The coordinates of a step, one after the other."""
    starts, key = np.cumsum([0, *sizes]), jax.random.key(0)
    if selection == "random":  # There is room for all of them, in leaves so small.
        draw = jax.random.fold_in(key, step)
        words = jax.random.bits(draw, (2, sum(sizes)), np.uint32)
        for start, end in itertools.pairwise(starts):
            place = start - 1
            for k in range(start, end):
                place += 1 + _failures(p, *map(int, words[:, k]))
                if place < end:
                    yield place
        return
    parts = math.ceil(1 / p)
    counts = [min(parts, n) if selection == "partitioned" else parts for n in sizes]
    for count in set(counts):
        draw = jax.random.fold_in(key, count)
        if selection == "partitioned":
            draw = jax.random.fold_in(draw, step // count)
        some = [i for i, other in enumerate(counts) if other == count]
        tables = [_table(sizes[i]) for i in some]
        total = sum(8 * (rows + columns) for rows, columns in tables)
        words = iter(np.asarray(jax.random.bits(draw, (total,), np.uint32)).tolist())
        for i, (rows, columns) in zip(some, tables, strict=True):
            down = [[next(words) for _ in range(columns)] for _ in range(8)]
            across = [[next(words) for _ in range(rows)] for _ in range(8)]
            part = np.array_split(np.arange(sizes[i]), count)[step % count]
            for cell in part.tolist():
                while True:
                    row, column = divmod(cell, columns)
                    for k in range(8):
                        row = (row + down[k][column]) % rows
                        column = (column + across[k][row]) % columns
                    cell = row * columns + column
                    if cell < sizes[i]:
                        break
                yield starts[i] + cell


def _failures(p, first, second):
    """A geometric number, m times one geometric number plus the rest, another one."""
    q, longest = 1 - p, 32 * math.log(2) / p
    m = math.isqrt(math.ceil(longest)) + 1
    rest = sum(first < 2**32 * (q**r - q**m) / (1 - q**m) for r in range(1, m))
    more = sum(second < 2**32 * q ** (m * k) for k in range(1, m + 2))
    return m * more + rest


def _table(size):
    columns = math.isqrt(size - 1) + 1
    return math.ceil(size / columns), columns


def outer(make_average, period, rate, momentum, *, nesterov=True):
    """Many local steps, then a step of momentum along what was learnt.

    Args:
      make_average: from the mixing matrix and the start to a function that averages.
      period: the number of steps between two averagings.
      rate: the outer learning rate.
      momentum: the outer momentum.
      nesterov: whether the outer momentum is Nesterov's.
    """

    def run(gradient, x, learning_rate, steps, W):
        average, anchor, u = make_average(W, x), x, np.zeros_like(x)
        for step in range(1, steps + 1):
            x = x - learning_rate * gradient(x)
            if step % period == 0:
                moved = anchor - average(x)
                u = momentum * u + moved
                anchor = anchor - rate * (moved + momentum * u if nesterov else u)
                x = anchor
        return x

    return run


def streaming(between, fragments, delay, blend, rate, momentum):
    """The exact average of one fragment of the coordinates after the other."""

    def run(gradient, x, learning_rate, steps, W):
        anchor, u, sent = x.copy(), np.zeros_like(x), {}
        for step in range(1, steps + 1):
            x = x - learning_rate * gradient(x)
            count, rest = divmod(step, between)
            if count and rest == 0:
                now = fragments[(count - 1) % len(fragments)]
                sent[step + delay] = now, x[:, now].mean(0, keepdims=True)
            if step in sent:
                now, mean = sent[step]
                moved = anchor[:, now] - mean
                u[:, now] = momentum * u[:, now] + moved
                anchor[:, now] -= rate * (moved + momentum * u[:, now])
                x[:, now] = blend * anchor[:, now] + (1 - blend) * x[:, now]
        return x

    return run


def noloco(matrices, period, rate, momentum, consensus):
    """With a term for what was learnt, and another one for the anchors."""

    def run(gradient, x, learning_rate, steps, W):
        anchor, u = x, np.zeros_like(x)
        for step in range(1, steps + 1):
            x = x - learning_rate * gradient(x)
            if step % period == 0:
                pairs = _at(matrices, x, step // period - 1)
                u = momentum * u + rate * pairs @ (x - anchor)
                u = u + consensus * (pairs @ anchor - anchor)
                x = anchor = anchor + u
        return x

    return run


def gossip_on_updates(gradient, x, learning_rate, steps, W):
    for _ in range(steps):
        x = x - learning_rate * W @ gradient(x)
    return x


def gossip_interleaved(gradient, x, learning_rate, steps, W):
    """Even coordinates over W, odd ones over the same graph numbered backwards."""
    reverse = W[::-1, ::-1]
    for _ in range(steps):
        y = x - learning_rate * gradient(x)
        x = np.empty_like(y)
        x[:, ::2], x[:, 1::2] = W @ y[:, ::2], reverse @ y[:, 1::2]
    return x


def relay(gradient, x, learning_rate, steps, W, missing="initial", overlap=False):
    average = relay_average(W, x, missing, overlap)
    for _ in range(steps):
        x = average(x - learning_rate * gradient(x), x)
    return x


def relay_average(W, start, missing="initial", overlap=False):
    """Sums over the half-step models of all workers, each from its own past."""
    n, past = len(start), []
    hops = _hops(W)
    delays = hops if overlap else np.maximum(hops - 1, 0)

    def average(y, x=None):
        t = len(past)
        past.append(y)
        latest = y if x is None else x
        pads = {"initial": np.tile(start[0], (n, 1)), "latest": latest, "self": y}
        new = np.empty_like(y)
        for i in range(n):
            heard = [past[t - d][j] for j, d in enumerate(delays[i]) if d <= t]
            if missing != "renormalize":
                heard += [pads[missing][i]] * (n - len(heard))
            new[i] = np.mean(heard, axis=0)
        return new

    return average


def relay_on_updates(gradient, x, learning_rate, steps, W):
    n, delays, past = len(x), np.maximum(_hops(W) - 1, 0), []
    for t in range(steps):
        past.append(-learning_rate * gradient(x))
        x = x + [
            sum(past[t - d][j] for j, d in enumerate(delays[i]) if d <= t) / n
            for i in range(n)
        ]
    return x


def _hops(W):
    hops = np.where(np.eye(len(W)), 0, np.inf)
    hops[(W > 0) & ~np.eye(len(W), dtype=bool)] = 1
    for k in range(len(W)):
        hops = np.minimum(hops, hops[:, [k]] + hops[[k]])
    return hops.astype(int)


def exact_diffusion(gradient, x, learning_rate, steps, W):
    """D² of half the steps, and without a correction that is carried along."""
    W = (W + np.eye(len(W))) / 2
    before, update_before = x, np.zeros_like(x)
    for t in range(steps):
        update = -learning_rate * gradient(x)
        y = x + update if t == 0 else 2 * x - before + update - update_before
        before, update_before, x = x, update, W @ y
    return x


def exact_diffusion_in_time(matrices):
    """With the correction c, what the last average has added beyond the update."""

    def run(gradient, x, learning_rate, steps, W):
        c = np.zeros_like(x)
        for t in range(steps):
            update, W = -learning_rate * gradient(x), _at(matrices, x, t)
            new = (x + update + c + W @ (x + update + c)) / 2
            c, x = new - x - update, new
        return x

    return run


def gradient_tracking_in_time(matrices):
    def run(gradient, x, learning_rate, steps, W):
        g = gradient(x)
        y = g
        for t in range(steps):
            W = _at(matrices, x, t)
            x = W @ (x - learning_rate * y)
            y = W @ y - g + (g := gradient(x))
        return x

    return run


def gradient_tracking(gradient, x, learning_rate, steps, W):
    """With the tracked direction y: x <- W (x - lr y), y <- W y + change of g."""
    g = gradient(x)
    y = g
    for _ in range(steps):
        x = W @ (x - learning_rate * y)
        y = W @ y - g + (g := gradient(x))
    return x


def led(period, rate):
    """As the paper has it, with the dual variable y, and a loop over the periods."""

    def run(gradient, x, learning_rate, steps, W):
        y = np.zeros_like(x)
        for step in range(1, steps + 1):
            x = x - learning_rate * gradient(x) - rate * y
            if step % period == 0:
                local, x = x, W @ x
                y = y + local - x
        return x

    return run


def prox_skip(coins, rate, chi):
    """As the paper has it, with the dual variable y and the matrix of heads."""

    def run(gradient, x, learning_rate, steps, W):
        heads = np.eye(len(W)) - (np.eye(len(W)) - W) / (2 * chi)
        y = np.zeros_like(x)
        for step in range(steps):
            z = x - learning_rate * gradient(x) - y
            x = heads @ z if coins[step % len(coins)] else z
            y = y + rate * (z - x)
        return x

    return run


def k_gt(period, rate):
    """With the correction C of gradients, and the anchor X of each period."""

    def run(gradient, x, learning_rate, steps, W):
        C, X = np.zeros_like(x), x
        for step in range(1, steps + 1):
            x = x - learning_rate * (gradient(x) + C)
            if step % period == 0:
                Z = (X - x) / (period * learning_rate)
                C = C - Z + W @ Z
                X = x = W @ (X - rate * (X - x))
        return x

    return run


def push_sum(matrices, rounds=1, overlap=False):
    """The gradients at z, as everywhere in the table: z / w is tested by itself."""

    def run(gradient, x, learning_rate, steps, W):
        k = 0
        for _ in range(steps):
            update = -learning_rate * gradient(x)
            y = x if overlap else x + update
            for _ in range(rounds):
                y, k = matrices(len(x))[k % len(matrices(len(x)))] @ y, k + 1
            x = y + update if overlap else y
        return x

    return run


def quasi_global_momentum(gradient, x, learning_rate, steps, W, mu=0.5):
    """What goes in are the gradients times the learning rate of the table."""
    m = np.zeros_like(x)
    for _ in range(steps):
        g = learning_rate * gradient(x)
        new = W @ (x - g - mu * (mu * m + g))
        m, x = mu * m + (1 - mu) * (x - new), new
    return x


def momentum(gradient, x, steps, average_model, average_state, rate=0.1, mu=0.9):
    """With `(t, x) -> x` that averages in step t, from 1; also returns the momentum."""
    m = np.zeros_like(x)
    for t in range(1, steps + 1):
        m = mu * m + gradient(x)
        x, m = average_model(t, x - rate * m), average_state(t, m)
    return x, m


def adam(gradient, x, steps, average_model, average_state, rate=0.1):
    """As `momentum`; returns the models and both moments."""
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t in range(1, steps + 1):
        g = gradient(x)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        x = average_model(t, x - rate * step)
        m, v = average_state(t, m), average_state(t, v)
    return x, m, v


def momentum_averaged(k=1):
    """Over W, or in every k-th step exactly; the gradients are as above."""

    def run(gradient, x, learning_rate, steps, W, mu=0.5):
        m = np.zeros_like(x)
        for t in range(1, steps + 1):
            m = mu * m + learning_rate * gradient(x)
            x = W @ (x - m)
            if k == 1:
                m = W @ m
            elif t % k == 0:
                m = np.broadcast_to(m.mean(0), m.shape)
        return x

    return run


def quasi_global_adam(gradient, x, learning_rate, steps, W, rate=0.05):
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t in range(1, steps + 1):
        g = learning_rate * gradient(x)
        first = (0.9 * m + 0.1 * g) / (1 - 0.9**t)
        second = (0.999 * v + 0.001 * g**2) / (1 - 0.999**t)
        new = W @ (x - rate * first / (np.sqrt(second) + 1e-8))
        moved = x - new
        moved /= np.linalg.norm(moved, axis=1, keepdims=True) + 1e-8
        m, v, x = 0.9 * m + 0.1 * moved, 0.999 * v + 0.001 * moved**2, new
    return x


def all_reduce(gradient, x, learning_rate, steps, W):
    for _ in range(steps):
        y = x - learning_rate * gradient(x)
        x = np.broadcast_to(y.mean(0), y.shape)
    return x


def all_reduce_overlap(gradient, x, learning_rate, steps, W):
    pending = np.zeros_like(x)
    for _ in range(steps):
        y, pending = x + pending, -learning_rate * gradient(x)
        x = np.broadcast_to(y.mean(0), y.shape)
    return x


def top_k(x, fraction=0.5):
    """Of the leaves b (2 entries) and w (4) of each worker, the largest."""
    out = np.zeros_like(x)
    for row, kept in zip(x, out, strict=True):
        for leaf in (slice(0, 2), slice(2, 6)):
            values = row[leaf]
            largest = np.argsort(-abs(values), kind="stable")
            largest = largest[: int(fraction * len(values))]
            kept[leaf][largest] = values[largest]
    return out


def sign(x):
    """The mean magnitude of each leaf, with the sign of each entry."""
    return np.concatenate(
        [
            np.where(leaf < 0, -1, 1) * abs(leaf).mean(1, keepdims=True)
            for leaf in (x[:, :2], x[:, 2:])
        ],
        axis=1,
    )


def largest_coefficient(x):
    """Of the cosine transforms of the leaves b (a vector) and w (2 x 2)."""
    leaves = []
    for leaf in (x[:, :2].reshape(-1, 1, 2), x[:, 2:].reshape(-1, 2, 2)):
        found = scipy.fft.dctn(leaf, axes=(1, 2), norm="ortho")
        found *= abs(found) == abs(found).max((1, 2), keepdims=True)
        back = scipy.fft.idctn(found, axes=(1, 2), norm="ortho")
        leaves.append(back.reshape(len(x), -1))
    return np.concatenate(leaves, axis=1)


def demo(gradient, x, learning_rate, steps, W, rate=0.05, decay=0.9, weight_decay=0.1):
    """What goes in are the gradients times the learning rate of the table."""
    residual = np.zeros_like(x)
    for _ in range(steps):
        residual = decay * residual + rate * learning_rate * gradient(x)
        sent = largest_coefficient(residual)
        residual = residual - sent
        gathered = []
        for leaf in (sent[:, :2].reshape(-1, 1, 2), sent[:, 2:].reshape(-1, 2, 2)):
            found = scipy.fft.dctn(leaf, axes=(1, 2), norm="ortho")
            count = np.maximum(1, (abs(found) > 1e-15).sum(0))
            mean = found.sum(0) / count
            gathered.append(scipy.fft.idctn(mean, norm="ortho").ravel())
        step = np.sign(np.concatenate(gathered))[None]
        x = x - rate * step - rate * weight_decay * x
    return x


def choco(
    gradient,
    x,
    learning_rate,
    steps,
    W,
    rate=0.4,
    overlap=False,
    sent=None,
    code=None,
):
    """With all copies x̂ at hand: x + rate (W - I) x̂; `sent` rounds the messages."""
    known = np.zeros_like(x)
    for _ in range(steps):
        update = -learning_rate * gradient(x)
        message = (code or top_k)((x if overlap else x + update) - known)
        known = known + (sent(message) if sent else message)
        x = x + update + rate * (W @ known - known)
    return x


def momentum_tracking(gradient, x, learning_rate, steps, W, beta=0.5, decay=0.0):
    g, rates = gradient(x), np.broadcast_to(learning_rate, steps)
    u = c = (g - g.mean(0)) / (1 - beta)
    for rate in rates:
        u = beta * u + gradient(x) + decay * x
        x = W @ x - rate * (u - c)
        c = W @ (c - u) + u
    return x


def momentum_tracking_in_time(matrices):
    """With the tracked direction y: y <- W y + change of the momentum."""

    def run(gradient, x, learning_rate, steps, W):
        u = y = gradient(x)
        for t in range(steps):
            W = _at(matrices, x, t)
            x = W @ x - learning_rate * y
            y = W @ y - u + (u := 0.5 * u + gradient(x))
        return x

    return run


def beer(gradient, x, learning_rate, steps, W, rate=0.4, code=top_k):
    """With all copies at hand. The published order: first x, then v."""
    known_x, known_v, g = np.zeros_like(x), np.zeros_like(x), gradient(x)
    v = g
    for eta in np.broadcast_to(learning_rate, steps):
        x = x + rate * (W @ known_x - known_x) - eta * v
        known_x = known_x + code(x - known_x)
        v = v + rate * (W @ known_v - known_v) - g + (g := gradient(x))
        known_v = known_v + code(v - known_v)
    return x


def gut(gradient, x, learning_rate, steps, W, mu=0.5, m=0.0, nesterov=False, rate=1.0):
    """Returns the points at which the next gradients would be taken."""
    L, b = W - np.eye(len(W)), 1 + m + nesterov * m**2
    public, old, v, point = x, np.zeros_like(x), np.zeros_like(x), x
    rates = np.broadcast_to(learning_rate, steps)
    for eta, before in zip(rates, [rates[0], *rates], strict=False):
        heard = W @ (x - public) + b * L @ public
        public, q = x, L @ x
        d = gradient(point) - q / before
        y = d - mu / before * heard - mu * old
        old, v = d, m * v + y
        x = x + rate * q - rate**2 * q - eta * (y + m * v if nesterov else v)
        point = x + rate * L @ x
    return point


def deep_squeeze(gradient, x, learning_rate, steps, W, rate=0.05):
    error = np.zeros_like(x)
    for _ in range(steps):
        y = x - learning_rate * gradient(x)
        sent = sign(y + error)
        error = y + error - sent
        x = y + rate * (W @ sent - sent)
    return x


def dcd(gradient, x, learning_rate, steps, W):
    for _ in range(steps):
        x = x + top_k(W @ x - learning_rate * gradient(x) - x)
    return x


def ecd(gradient, x, learning_rate, steps, W):
    """With nothing lost, the estimates are the models."""
    estimate = x
    for t in range(1, steps + 1):
        new = W @ estimate - learning_rate * gradient(x)
        beyond = (1 - t / 2) * x + t / 2 * new
        estimate, x = (1 - 2 / t) * estimate + 2 / t * beyond, new
    return x


def moniqua(gradient, x, learning_rate, steps, W, theta=8.0, rate=0.1, bits=8):
    """Every worker's neighbours, reconstructed near its own model."""
    delta = 1 / (2**bits - 1)
    B = 2 * theta / (1 - 2 * delta)
    for step in range(steps):
        y = x - learning_rate * gradient(x)
        noise = _noise(jax.random.fold_in(jax.random.key(0), step), 6)
        phase = y / B - np.round(y / B)
        levels = np.floor((phase + 0.5) / delta + noise)
        sent = (levels * delta - 0.5) * B
        x = y.copy()
        for i, j in zip(*np.nonzero(W), strict=True):
            theirs, mine = sent[j] - y[i], sent[i] - y[i]
            theirs, mine = (d - B * np.round(d / B) for d in (theirs, mine))
            x[i] += rate * W[i, j] * (theirs - mine)
    return x


def _noise(key, count):
    """Uniform in steps of 2^-16, from the lower and the upper half of each word."""
    words = np.asarray(jax.random.bits(key, (count // 2,), np.uint32))
    return (np.stack([words % 2**16, words // 2**16], axis=1).ravel() + 0.5) / 2**16


def power_gossip(rank=1, iterations=1, overlap=False, rate=1.0, matrices=None):
    def run(gradient, x, learning_rate, steps, W):
        period = [W] if matrices is None else matrices(len(x))
        average = power_gossip_average(period, rank, iterations, rate)
        for _ in range(steps):
            update = -learning_rate * gradient(x)
            x = average(x) + update if overlap else average(x + update)
        return x

    return run


def power_gossip_average(period, rank=1, iterations=1, rate=1.0):
    """One edge after the other; the matrix of [b, w] is w transposed, b a vector.

    In even periods the side of the first iteration changes after each period, too.
    """
    n, k = len(period[0]), 0
    steps, factors = itertools.count(), {}
    for edge in itertools.combinations(range(n), 2):
        both = _first_vectors(rank, n * edge[0] + edge[1])
        factors[edge, 0], factors[edge, 1] = both

    def average(y):
        nonlocal k
        t = next(steps)
        W = period[t % len(period)]
        edges = [(i, j) for i in range(n) for j in range(i + 1, n) if W[i, j]]
        if iterations % 2 and len(period) % 2 == 0 and t and t % len(period) == 0:
            k += 1
        new = y.copy()
        new[:, :2] = W @ y[:, :2]
        for _ in range(iterations):
            k += 1
            M = new[:, 2:].reshape(n, 2, 2).swapaxes(1, 2)
            moved = M.copy()
            for low, high in edges:
                gap = M[high] - M[low]
                U, V = factors[(low, high), 0], factors[(low, high), 1]
                if k % 2:
                    V = _orth(V)
                    U = gap @ V
                else:
                    U = _orth(U)
                    V = gap.T @ U
                factors[(low, high), 0], factors[(low, high), 1] = U, V
                moved[low] += rate * W[low, high] * U @ V.T
                moved[high] -= rate * W[low, high] * U @ V.T
            new[:, 2:] = moved.swapaxes(1, 2).reshape(n, 4)
        return new

    return average


def _first_vectors(rank, edge):
    """The columns that both ends of an edge draw, for the left and the right."""
    key = jax.random.key(0)
    for data in (0, jnp.finfo(float).bits, edge):
        key = jax.random.fold_in(key, data)
    left, right = np.array(jax.random.normal(key, (2, rank, 2), float))
    return left.T, right.T


def _orth(columns):
    """Gram-Schmidt, once or twice more for a column of which little is left."""
    columns = columns.copy()
    lengths = np.linalg.norm(columns, axis=0)
    for i in range(columns.shape[1]):
        column, earlier = columns[:, i], columns[:, :i]
        length = np.linalg.norm(column)
        new = length / lengths[i]
        column /= length + 1e-8
        for _ in range(2):
            if new < 1e-3:
                column -= earlier @ (earlier.T @ column)
                new = np.linalg.norm(column)
                column /= new + 1e-8
        rest = columns[:, i + 1 :]
        rest -= np.outer(column, column @ rest)
    return columns


def asynchronous(events, x, gradient, *, rate, momentum, acid=(0.0, 0.5, 0.5)):
    """A²CiD² and AD-PSGD, event by event: SGD with momentum on vectors.

    `gradient(i, k, x)` is worker `i`'s `k`-th; `acid` is eta, alpha, alpha_tilde.
    Returns x and x̃, mixed up to the end, and the numbers of gradients.
    """
    eta, alpha, alpha_tilde = acid
    x, tilde, velocity = x.copy(), x.copy(), np.zeros_like(x)
    started, last = x.copy(), np.zeros(len(x))
    counts = np.zeros(len(x), int)

    def mix(i, now):
        e = np.exp(-2 * eta * (now - last[i]))
        x[i], tilde[i] = (
            ((1 + e) * x[i] + (1 - e) * tilde[i]) / 2,
            ((1 - e) * x[i] + (1 + e) * tilde[i]) / 2,
        )
        last[i] = now

    rows = zip(events.time, events.worker, events.peer, strict=True)
    for step, (now, i, j) in enumerate(rows):
        mix(i, now)
        if j < 0:
            velocity[i] = momentum * velocity[i] + gradient(i, counts[i], started[i])
            done = (events.peer[:step] < 0).sum()
            update = rate(done, counts[i]) * velocity[i]
            x[i] -= update
            tilde[i] -= update
            started[i] = x[i]
            counts[i] += 1
        else:
            mix(j, now)
            gap = x[i] - x[j]
            x[i] -= alpha * gap
            x[j] += alpha * gap
            tilde[i] -= alpha_tilde * gap
            tilde[j] += alpha_tilde * gap
    for i in range(len(x)):
        mix(i, events.duration)
    return x, tilde, counts
