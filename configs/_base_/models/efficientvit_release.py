"""EfficientViT's variants: their channels at strides 16, 32 and 64, and the authors' release.

``_base_.release + 'efficientvit_m4.pth'`` are ImageNet weights.
"""

# as in evit_mm/models/variants.py: mmengine does not allow a config with _base_ to import it
embed_dims = dict(
    m0=[64, 128, 192],
    m1=[128, 144, 192],
    m2=[128, 192, 224],
    m3=[128, 240, 320],
    m4=[128, 256, 384],
    m5=[192, 288, 384],
)

release = 'https://github.com/xinyuliu-jeffrey/EfficientViT_Model_Zoo/releases/download/v1.0/'
