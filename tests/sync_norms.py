"""The norms that are spread over devices, behind one signature."""

import jaxnorm as jn

FEATURES = 4


def batch(x, scale, bias, **kwargs):
    return jn.batch_norm(
        x, jn.init_stats(FEATURES), scale, bias, training=True, **kwargs
    )


def group(x, scale, bias, **kwargs):
    return jn.group_norm(x, scale, bias, num_groups=2, **kwargs), ()


def instance(x, scale, bias, **kwargs):
    return jn.instance_norm(x, scale, bias, **kwargs), ()


def layer(x, scale, bias, **kwargs):
    scale, bias = scale.reshape(1, 1, -1), bias.reshape(1, 1, -1)
    return jn.layer_norm(x, scale, bias, axis=(1, 2), **kwargs), ()


def rms(x, scale, bias, **kwargs):
    return jn.rms_norm(x, scale.reshape(1, 1, -1), axis=(1, 2), **kwargs), ()


# Each norm, and the axis of x that is spread over the devices: one that it reduces.
NORMS = {
    "batch": (batch, 0),
    "group": (group, 1),
    "instance": (instance, 1),
    "layer": (layer, 1),
    "rms": (rms, 1),
}
