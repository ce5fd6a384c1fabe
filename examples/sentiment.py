"""Is a sentence positive or negative? An embedding, two recurrent layers, the state after each sentence's last word.

    python examples/sentiment.py --data DIR                            # train; prints the held-out accuracy
    python examples/sentiment.py --predict "The food was cold."        # with the model that the training saved

DIR holds text files (``*.txt``) with one ``sentence<TAB>label`` a line, 1 positive and 0 negative, for example the
Sentiment Labelled Sentences of the UCI Machine Learning Repository (Kotzias et al., KDD 2015): 3,000 sentences.

Sentences differ in length. They are padded to the longest of their batch, and ``lengths`` tells the layer where each
ends: its final state is then the one after the last word, never one after padding.
"""

import argparse
import copy
import re
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from tqdm import trange

from xlstm_fused import FusedxLSTM

UNKNOWN = 0
"""The index of every word that the training part does not have often enough."""


def words(sentence):
    """Lower-case words, and the marks that carry a tone; contractions stay whole, so that "isn't" is one word."""
    return re.findall(r"[a-z]+(?:'[a-z]+)?|[!?]", sentence.lower())


def read(folder):
    """``[(sentence, label)]`` of every text file in the folder."""
    files = sorted(Path(folder).glob("*.txt"))
    if not files:
        raise SystemExit(f"error: --data: no *.txt file in {folder}")
    examples = []
    for file in files:
        # Not splitlines(): a sentence may hold characters that Python counts as ends of lines.
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
            sentence, _, label = line.strip().rpartition("\t")
            if label not in ("0", "1", ""):
                raise SystemExit(f"error: --data: {file}, line {number}: expected sentence<TAB>0 or 1, got {line!r}")
            if sentence:
                examples.append((sentence, int(label)))
    return examples


def build_vocabulary(examples, at_least):
    counts = Counter(word for sentence, _ in examples for word in words(sentence))
    known = sorted(word for word, count in counts.items() if count >= at_least)
    return {word: index for index, word in enumerate(known, UNKNOWN + 1)}


class Classifier(nn.Module):
    """Word indices (B, T) and the lengths (B,) of the sentences -> log-odds (B,) of positive."""

    def __init__(self, vocabulary_size, width, cell, dropout):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size + 1, width)
        self.layers = FusedxLSTM(width, width, num_layers=2, batch_first=True, bidirectional=True, dropout=dropout,
                                 cell=cell)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width, 1)

    def forward(self, indices, lengths):
        x = self.dropout(self.embedding(indices))
        _, (h, *_) = self.layers(x, lengths=lengths)
        # The last layer's two directions: after the last word, and, walking backwards, after the first.
        return self.head(self.dropout(torch.cat((h[-2], h[-1]), 1))).squeeze(1)


def collate(vocabulary, word_dropout, examples):
    """A batch: indices (B, T), lengths (B,), labels (B,). ``word_dropout`` makes that share of the words unknown."""
    rows = [torch.tensor([vocabulary.get(word, UNKNOWN) for word in words(sentence)] or [UNKNOWN])
            for sentence, _ in examples]
    lengths = torch.tensor([len(row) for row in rows])
    indices = pad_sequence(rows, batch_first=True)
    indices = indices.masked_fill(torch.rand(indices.shape) < word_dropout, UNKNOWN)
    return indices, lengths, torch.tensor([float(label) for _, label in examples])


def accuracy(model, loader):
    model.eval()
    with torch.no_grad():
        right = [((model(indices, lengths) > 0) == (labels > 0.5)) for indices, lengths, labels in loader]
    return torch.cat(right).float().mean().item()


def train(args):
    examples = read(args.data)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(args.seed)).tolist()
    examples = [examples[index] for index in order]
    # A fifth is held out. A tenth decides which epoch's model is kept, so that the fifth stays unseen until the end.
    fifth, tenth = len(examples) // 5, len(examples) // 10
    test, valid, training = examples[:fifth], examples[fifth:fifth + tenth], examples[fifth + tenth:]
    vocabulary = build_vocabulary(training, args.min_count)
    print(f"{len(training)} sentences to train on, {len(valid)} to choose the epoch, {len(test)} held out; "
          f"{len(vocabulary)} words")

    torch.manual_seed(args.seed)
    sizes = dict(vocabulary_size=len(vocabulary), width=args.width, cell=args.cell, dropout=args.dropout)
    model = Classifier(**sizes)
    loader = DataLoader(training, 32, shuffle=True, collate_fn=partial(collate, vocabulary, args.word_dropout))
    valid_loader, test_loader = (DataLoader(part, 256, collate_fn=partial(collate, vocabulary, 0.0))
                                 for part in (valid, test))
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate)
    best, state = -1.0, None
    bar = trange(args.epochs, unit="epoch", desc=args.cell)
    for _ in bar:
        loss = train_epoch(model, loader, optimizer)
        reached = accuracy(model, valid_loader)
        bar.set_postfix(loss=f"{loss:.3f}", valid=f"{reached:.3f}")
        if reached > best:
            best, state = reached, copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    held_out = accuracy(model, test_loader)
    print(f"held-out accuracy {held_out:.3f}")
    args.model.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"sizes": sizes, "vocabulary": vocabulary, "model": model.state_dict()}, args.model)
    print(f"saved {args.model}")
    return held_out


def train_epoch(model, loader, optimizer):
    """One pass over the training part; returns the mean loss."""
    model.train()
    losses = []
    for indices, lengths, labels in loader:
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(indices, lengths), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def predict(args):
    if not args.model.is_file():
        raise SystemExit(f"error: --model: {args.model} does not exist; train first, with --data DIR")
    saved = torch.load(args.model, weights_only=True)
    model = Classifier(**saved["sizes"])
    model.load_state_dict(saved["model"])
    model.eval()
    indices, lengths, _ = collate(saved["vocabulary"], 0.0, [(args.predict, 0)])
    with torch.no_grad():
        positive = torch.sigmoid(model(indices, lengths)).item()
    print(f"{'positive' if positive > 0.5 else 'negative'} (probability of positive {positive:.2f})")
    return positive


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path, metavar="DIR", help="train on the *.txt files of this folder")
    what.add_argument("--predict", metavar="TEXT", help="say whether this sentence is positive or negative")
    parser.add_argument("--model", type=Path, default=Path("sentiment.pt"), metavar="FILE",
                        help="where the trained model is (default %(default)s)")
    parser.add_argument("--cell", choices=("lstm", "slstm"), default="lstm")
    parser.add_argument("--epochs", type=int, default=8, help="(default %(default)s)")
    parser.add_argument("--width", type=int, default=32, help="of embedding and layers (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=6e-3, help="(default %(default)s)")
    parser.add_argument("--dropout", type=float, default=0.5, help="(default %(default)s)")
    parser.add_argument("--word-dropout", type=float, default=0.15,
                        help="share of a training sentence's words that become unknown (default %(default)s)")
    parser.add_argument("--min-count", type=int, default=1, metavar="N",
                        help="a word needs this many occurrences to be known (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="(default %(default)s: the layers are small)")
    args = parser.parse_args(argv)
    if args.epochs < 1:
        parser.error(f"--epochs: expected at least 1, got {args.epochs}")
    torch.set_num_threads(args.threads)
    return predict(args) if args.predict is not None else train(args)


if __name__ == "__main__":
    main()
