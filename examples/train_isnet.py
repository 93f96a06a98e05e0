"""An ISNet in your own training loop: random images here; put your data loader of (image, mask, label) in.

python examples/train_isnet.py
"""

import torch
from monai.networks.nets import DenseNet121

import isnet

torch.manual_seed(0)
net = isnet.ISNet(DenseNet121(2, 1, 3), variant="selective", input_range=(0.0, 1.0))
criterion = isnet.ISNetLoss(p=0.7, d=0.9)
optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)

net.train()
for step in range(3):
    images, labels = torch.rand(4, 1, 64, 64), torch.randint(0, 3, (4,))
    masks = torch.zeros(4, 1, 64, 64)
    masks[:, :, 16:48, 16:48] = 1  # 1 = foreground
    out = net(images)
    loss = criterion(out, labels, masks)
    optimizer.zero_grad()
    loss.total.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    print(
        f"step {step}: total {loss.total.item():.3f}, class {loss.classification.item():.3f}, heatmap {loss.heatmap.item():.3f}"
    )

net.eval()
print("logits at run time, at the classifier's own cost:", net(images).shape)
