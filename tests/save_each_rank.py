"""`save_each_rank.py FOLDER words`: main.py with these words, and what each process has learned in FOLDER/rankN.pth."""

import os
import sys

import torch

import engine
import main

folder = sys.argv[1]
train = engine.Continual.run


def train_and_save(self, *arguments):
    found = train(self, *arguments)
    torch.save(self.model.learned_state(), f"{folder}/rank{os.environ['RANK']}.pth")
    return found


engine.Continual.run = train_and_save
sys.exit(main.main(sys.argv[2:]))
