"""Train on several processes: DistributedDataParallel, or fully_shard (FSDP2), which also splits the parameters.

    torchrun --nproc-per-node 2 examples/distributed.py --strategy fsdp

The task is the adding problem (Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997,
section 5.4): of a sequence of random numbers, two are marked; after the last step, say their sum. Every step draws one
batch for all processes, of which each trains on its part, so that rounding apart their number changes nothing.
"""

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from xlstm_fused import FusedxLSTM


class Adder(nn.Module):
    def __init__(self, hidden_size, cell):
        super().__init__()
        self.lstm = FusedxLSTM(2, hidden_size, cell=cell, forget_bias=1.0)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x, lengths):
        _, state = self.lstm(x, lengths=lengths)
        return self.head(state[0][-1])


def batch(T, B, generator):
    """``(x (T, B, 2), lengths (B,), sum (B, 1))``: a number and a mark per step, a mark in each half of a sequence."""
    lengths = torch.randint(T // 2, T + 1, (B,), generator=generator)
    numbers = torch.rand(T, B, generator=generator)
    first, second = ((torch.rand(B, generator=generator) * (lengths // 2)).long() + start
                     for start in (0, lengths // 2))
    marks = torch.zeros(T, B).scatter_(0, torch.stack((first, second)), 1)
    return torch.stack((numbers, marks), 2), lengths, (numbers * marks).sum(0).unsqueeze(1)


def whole(value):
    """A parameter or gradient, put together from its parts where fully_shard has split it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--cell", choices=("lstm", "slstm"), default="lstm")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--length", type=int, default=30)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--batch", type=int, default=64, help="sequences of all processes together")
    parser.add_argument("--save", help="file for the parameters and the last gradients")
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    if device.type == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())
    torch.manual_seed(0)
    model = Adder(args.hidden, args.cell).to(device)
    if args.strategy == "fsdp":
        trained = fully_shard(model)
    else:
        trained = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(trained.parameters(), lr=args.lr)

    generator = torch.Generator().manual_seed(1)
    for step in range(1, args.steps + 1):
        x, lengths, target = (value.to(device) for value in batch(args.length, args.batch, generator))
        mine = slice(rank, None, world)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(trained(x[:, mine], lengths[mine]), target[mine])
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        loss = loss.detach()
        dist.all_reduce(loss, dist.ReduceOp.SUM)
        if rank == 0 and (step % 20 == 0 or step == args.steps):
            print(f"step {step}: mean squared error {loss.item() / world:.4f}", flush=True)

    if args.save:
        values = {name: (whole(value.detach()), whole(value.grad)) for name, value in model.named_parameters()}
        if rank == 0:
            torch.save(values, args.save)
    # First what also holds the group: as its last owner, DDP would wait for the group's threads and keep from them the
    # interpreter lock that they need to drop their last tensors.
    del trained
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
