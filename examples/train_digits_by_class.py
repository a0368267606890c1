"""Train the pipeline that ships in ``examples/digits_by_class``: a DiT on scikit-learn's real 8x8 digits, by class.

Run with ``python examples/train_digits_by_class.py``; about fifteen minutes on one CPU core. The result is an ordinary
diffusers pipeline with classifier-free guidance:

    pipe = DiTPipeline.from_pretrained("examples/digits_by_class")
    pipe(class_labels=[3, 7], guidance_scale=2.0, num_inference_steps=50).images
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, DiTPipeline, DiTTransformer2DModel
from train_digits import confidence, digits, fit

NO_CLASS = 1000  # what DiTPipeline asks for in the unguided half of its batch


def denoiser() -> DiTTransformer2DModel:
    """Three blocks of 80 channels on 2x2 patches: 0.7 M parameters, a third of them embeddings of classes not in use.

    Every block starts as the identity (Peebles and Xie 2023, adaLN-Zero).
    """
    net = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=20,
        in_channels=1,
        out_channels=1,
        num_layers=3,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=NO_CLASS,
    )
    for layer in (*(block.norm1.linear for block in net.transformer_blocks), net.proj_out_1, net.proj_out_2):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return net


def train(steps: int, batch: int, lr: float, dropout: float) -> DiTTransformer2DModel:
    """Noise-prediction training as in ``train_digits.py``, where a fraction ``dropout`` of the classes is withheld."""
    images, classes = digits()
    scheduler = DDPMScheduler()
    net = denoiser().eval()  # in training mode every block would drop classes of its own choice

    def loss() -> torch.Tensor:
        chosen = torch.randint(len(images), (batch,))
        clean, labels = images[chosen], classes[chosen].where(torch.rand(batch) >= dropout, NO_CLASS)
        noise, t = torch.randn_like(clean), torch.randint(len(scheduler.betas), (batch,))
        return (net(scheduler.add_noise(clean, noise, t), t, class_labels=labels).sample - noise).square().mean()

    net = fit(net, loss, steps, lr)
    for block in net.transformer_blocks:
        block.norm1.emb.class_embedder.embedding_table.weight[int(classes.max()) + 1 : NO_CLASS] = 0
    return net


def pixels(steps: int, batch: int, lr: float) -> AutoencoderKL:
    """An autoencoder whose latents are the pixels: ``DiTPipeline`` always decodes, and 8x8 needs no compression.

    Both of its halves learn the identity, from digits and mixtures of digits and noise within [-1, 1].
    """
    images, _ = digits()
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=1,
        block_out_channels=(16,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        layers_per_block=1,
        norm_num_groups=1,
        sample_size=8,
        scaling_factor=1.0,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )

    def loss() -> torch.Tensor:
        clean, noise = images[torch.randint(len(images), (batch,))], torch.rand(batch, 1, 8, 8) * 2 - 1
        x = clean.lerp(noise, torch.rand(batch, 1, 1, 1).square())
        posterior = vae.encode(x).latent_dist
        return sum((y - x).square().mean() for y in (vae.decode(x).sample, posterior.mean)) + posterior.std.mean()

    return fit(vae, loss, steps, lr)


def report(pipe: DiTPipeline, count: int, seed: int) -> None:
    """Print how many of ``count`` samples are of the class asked for, without guidance and with it."""
    images, _ = digits()
    print(f"digits: pixels {images.mean():.3f} +- {images.std():.3f}")
    labels = [i % 10 for i in range(count)]
    for scheduler, steps in ((DDIMScheduler, 50), (DDPMScheduler, 250)):
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
        for scale in (1.0, 2.0):
            torch.manual_seed(seed)  # DiTPipeline gives its generator to the first noise only
            samples = pipe(labels, scale, num_inference_steps=steps, output_type="pt").images * 2 - 1
            found = confidence(samples)
            print(
                f"{scheduler.__name__}, {steps} steps, guidance {scale:.0f}: {(found.classes == labels).mean():.1%} of "
                f"{count} samples in the class asked for, {found.confident:.1%} with a class of probability >= 0.9, "
                f"pixels {samples.mean():.3f} +- {samples.std():.3f}"
            )


def main() -> None:
    """Train, save in half precision, load, sample and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=14000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "digits_by_class")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    vae = pixels(5000, 32, 2e-3)
    transformer = train(args.steps, args.batch, args.lr, args.dropout)
    # not clip_sample: DDIM would clip the image and keep the noise predicted with it, which ruins guided samples
    DiTPipeline(transformer.half(), vae.half(), DDPMScheduler(clip_sample=False)).save_pretrained(args.out)
    pipe = DiTPipeline.from_pretrained(args.out)
    pipe.set_progress_bar_config(disable=True)
    report(pipe, 500, seed=1)


if __name__ == "__main__":
    main()
