"""The authors' release; ``_base_.release + 'efficientvit_m4.pth'`` are ImageNet weights."""

release = 'https://github.com/xinyuliu-jeffrey/EfficientViT_Model_Zoo/releases/download/v1.0/'
