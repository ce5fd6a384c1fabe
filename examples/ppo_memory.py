"""Recurrent PPO on a task that needs memory, its update one call per minibatch instead of a loop over time.

    python examples/ppo_memory.py                  # trains twice from one seed: with one call, and with the loop
    python examples/ppo_memory.py --updates 80

The task: a cue of +1 or -1 is shown at an episode's first step, then nothing for some steps, then a flag asks for it;
the action taken there decides the reward. Episodes end in the middle of a rollout, and the state must not cross their
ends. nn.LSTM has no word for that, so recurrent PPO steps through time in Python, clearing states between steps;
``reset`` clears them inside the kernel.

The clipped objective, the advantages and the order of things are those of Schulman et al., "Proximal Policy
Optimization Algorithms", arXiv 1707.06347, and "High-Dimensional Continuous Control Using Generalized Advantage
Estimation", arXiv 1506.02438; minibatches are whole environments, whose order in time is kept.

Needs gymnasium.
"""

import argparse
import time

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn
from torch.distributions import Categorical

from xlstm_fused import FusedxLSTM

GAMMA, LAMBDA, CLIP, EPOCHS, MINIBATCHES = 0.99, 0.95, 0.2, 4, 2


class Recall(gymnasium.Env):
    """See a cue, wait for ``shortest`` to ``longest`` steps, repeat it. Observation: (cue, whether it is asked for)."""

    def __init__(self, shortest: int = 4, longest: int = 12) -> None:
        self.observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.range = shortest, longest + 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cue, self.left = int(self.np_random.integers(2)), int(self.np_random.integers(*self.range))
        return np.array((2 * self.cue - 1, 0), np.float32), {}

    def step(self, action):
        if self.left == 0:
            return np.zeros(2, np.float32), 1.0 if action == self.cue else -1.0, True, False, {}
        self.left -= 1
        return np.array((0, self.left == 0), np.float32), 0.0, False, False, {}


class Agent(nn.Module):
    """Policy and value from one recurrent layer; nn.LSTM and FusedxLSTM start from the same numbers for a seed."""

    def __init__(self, one_call: bool, hidden_size: int) -> None:
        super().__init__()
        self.one_call = one_call
        self.encoder = nn.Linear(2, hidden_size)
        self.recurrent = (FusedxLSTM if one_call else nn.LSTM)(hidden_size, hidden_size)
        self.policy, self.value = nn.Linear(hidden_size, 2), nn.Linear(hidden_size, 1)

    def forward(self, observations, state, resets):
        """observations (T, B, 2), resets (T, B): whether an episode begins at a step."""
        x = torch.tanh(self.encoder(observations))
        if self.one_call:
            x, state = self.recurrent(x, state, reset=resets)
        else:
            outputs = []
            for row, reset in zip(x, resets):
                kept = (~reset).to(x.dtype)[:, None]
                output, state = self.recurrent(row[None], tuple(kept * value for value in state))
                outputs.append(output)
            x = torch.cat(outputs)
        return Categorical(logits=self.policy(x)), self.value(x).squeeze(-1), state


def advantages(rewards, values, dones, last_value):
    """Generalised advantage estimates, (T, B)."""
    result, following = torch.zeros_like(rewards), 0
    after = torch.cat((values[1:], last_value[None]))
    for t in reversed(range(len(rewards))):
        alive = (~dones[t]).to(rewards.dtype)
        following = rewards[t] + GAMMA * alive * after[t] - values[t] + GAMMA * LAMBDA * alive * following
        result[t] = following
    return result


def train(one_call: bool, updates: int, seed: int = 0, steps: int = 64, number: int = 16, hidden_size: int = 64,
          dtype=torch.float64) -> tuple[list[float], float]:
    """``(mean reward per episode of each update, seconds spent in updates)``.

    float64, so that two ways to compute the same stay the same over many updates of sampled actions.
    """
    torch.manual_seed(seed)
    agent = Agent(one_call, hidden_size).to(dtype)
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-3)
    environments = SyncVectorEnv([Recall] * number, autoreset_mode=AutoresetMode.SAME_STEP)
    observation = torch.from_numpy(environments.reset(seed=seed)[0]).to(dtype)
    reset, state = torch.ones(number, dtype=torch.bool), tuple(torch.zeros(2, 1, number, hidden_size, dtype=dtype))
    curve, seconds = [], 0.0
    for _ in range(updates):
        start, record = state, []
        with torch.no_grad():
            for _ in range(steps):
                choice, value, state = agent(observation[None], state, reset[None])
                action = choice.sample()
                after, reward, done, _, _ = environments.step(action[0].numpy())
                record.append((observation, reset, action[0], choice.log_prob(action)[0], value[0],
                               torch.from_numpy(reward).to(dtype)))
                observation, reset = torch.from_numpy(after).to(dtype), torch.from_numpy(done)
            last_value = agent(observation[None], state, reset[None])[1][0]
        observations, resets, actions, log_probs, values, rewards = (torch.stack(rows) for rows in zip(*record))
        dones = torch.cat((resets[1:], reset[None]))
        curve.append((rewards.sum() / dones.sum()).item())
        advantage = advantages(rewards, values, dones, last_value)
        returns = advantage + values

        begin = time.perf_counter()
        for _ in range(EPOCHS):
            for rows in torch.randperm(number).chunk(MINIBATCHES):
                choice, value, _ = agent(observations[:, rows], tuple(part[:, rows] for part in start),
                                         resets[:, rows])
                scaled = advantage[:, rows]
                scaled = (scaled - scaled.mean()) / (scaled.std() + 1e-8)
                ratio = (choice.log_prob(actions[:, rows]) - log_probs[:, rows]).exp()
                gain = torch.minimum(ratio * scaled, ratio.clamp(1 - CLIP, 1 + CLIP) * scaled).mean()
                error = (value - returns[:, rows]).square().mean()
                optimizer.zero_grad()
                (0.5 * error - gain - 0.01 * choice.entropy().mean()).backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
        seconds += time.perf_counter() - begin
    environments.close()
    return curve, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    (curve, seconds), (loop_curve, loop_seconds) = (train(one_call, arguments.updates, arguments.seed)
                                                    for one_call in (True, False))
    print("update  one call      loop   mean reward of an episode")
    for index, pair in enumerate(zip(curve, loop_curve)):
        print("{:6d}  {:8.4f}  {:8.4f}".format(index, *pair))
    print(f"largest difference of the curves: {max(abs(a - b) for a, b in zip(curve, loop_curve)):.3g}")
    print(f"updates took {seconds:.2f} s in one call, {loop_seconds:.2f} s in the loop: {loop_seconds / seconds:.1f} "
          "times as fast")


if __name__ == "__main__":
    main()
