"""What PyTorch's exporter leaves to do in the graph of an ONNX file."""

import onnx_ir


def refuse_smaller(model: onnx_ir.Model, smallest: int) -> None:
    """Let images that the model refuses fail in the first node.

    ONNX has no assertions. This reshapes to at least the smallest size, which
    only works where it changes nothing. Runtimes name the node that fails.

    Args:
        model: Of one input, the images.
        smallest: Pixels of the smallest height and width.
    """
    (images,) = model.graph.inputs
    uses = images.uses()
    shape = onnx_ir.node('Shape', [images])
    least = onnx_ir.tensor([0, 0, smallest, smallest])
    least = onnx_ir.node('Constant', [], dict(value=least))
    shape_or_least = onnx_ir.node('Max', [*shape.outputs, *least.outputs])
    reshape = onnx_ir.node(
        'Reshape',
        [images, *shape_or_least.outputs],
        name=f'images_must_have_{smallest}_x_{smallest}_pixels_or_more',
    )
    (checked,) = reshape.outputs
    checked.shape, checked.type = images.shape, images.type
    for node, index in uses:
        node.replace_input_with(index, checked)
    model.graph.insert_before(
        model.graph[0], [shape, least, shape_or_least, reshape]
    )


def remove_traces(model: onnx_ir.Model) -> None:
    """Remove where in the code each node comes from, in place.

    That names folders of the machine that exported.
    """
    for node in model.graph.all_nodes():
        node.metadata_props.pop('pkg.torch.onnx.stack_trace', None)


def lower(model: onnx_ir.Model, opset: int) -> None:
    """Write what changed in opset 18 in the older form, in place.

    Args:
        model: Of opset 18, without LayerNormalization if ``opset`` is 16.
        opset: 16 or 17.
    """
    newer = dict(
        Resize=('antialias', 'keep_aspect_ratio_policy'),
        ReduceMean=('noop_with_empty_axes',),
    )
    for node in model.graph.all_nodes():
        for name in newer.get(node.op_type, ()):
            node.attributes.pop(name, None)  # PyTorch writes the defaults
        if node.op_type == 'ReduceMean' and len(node.inputs) == 2:
            axes = node.inputs[1].const_value.numpy()
            node.attributes.add(onnx_ir.AttrInt64s('axes', axes.tolist()))
            node.resize_inputs(1)
    model.opset_imports[''] = opset
