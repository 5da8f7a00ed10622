"""Every algorithm once more, as plainly as possible: the workers are the rows of x.

Each function takes the gradient of all workers `[n, d] -> [n, d]`, the start `[n, d]`,
the learning rate, the number of steps and the mixing matrix, and returns `[n, d]`.
"""

import numpy as np


def gossip(gradient, x, learning_rate, steps, W, rate=1.0):
    for _ in range(steps):
        y = x - learning_rate * gradient(x)
        x = (1 - rate) * y + rate * W @ y
    return x


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
