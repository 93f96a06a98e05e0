"""A heatmap of any PyTorch classifier, and how it replaces captum's LRP.

python examples/heatmap.py
"""

import torch
from monai.networks.nets import DenseNet121

import lrpkernels as lrp

torch.manual_seed(0)
model = DenseNet121(spatial_dims=2, in_channels=1, out_channels=4).eval()  # any nn.Module; nothing in it is changed
images = torch.rand(2, 1, 64, 64)

# captum.attr.LRP(model).attribute(images, target=3) is lrp.LRP(model, lrp.EpsilonLayerwise(1e-9)).attribute(images, target=3)
with torch.no_grad():  # pictures only: no graph is kept
    logits, heatmap = lrp.LRP(model, lrp.Epsilon(1e-2))(images, target=3)
print("logits", tuple(logits.shape), "heatmap", tuple(heatmap.shape), "sum per image", heatmap.sum((1, 2, 3)).tolist())

# Other rules: z+ for convolutions, epsilon for dense layers, the box rule for pixels in [0, 1]; all classes from one forward pass.
composite = lrp.EpsilonPlus(first=lrp.ZBox(0.0, 1.0))
with torch.no_grad():
    _, per_class = lrp.LRP(model, composite)(images, target="all")
print("one map per class", tuple(per_class.shape))
print(lrp.LRP(model, composite).explain(images[:1])[:600])

# The heatmap is differentiable: train through it.
_, heatmap = lrp.LRP(model)(images)
heatmap.abs().mean().backward()
print("gradient of the first convolution", float(next(model.parameters()).grad.norm()))
