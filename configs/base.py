"""Every option of the program, once: name, type, default, meaning.

Names are those of the PyTorch re-implementation where it has them, and so are the defaults: its settings for Split
CIFAR-100. `configs.command` reads command lines with them.
"""

from configs.option import EPOCHS, RATE, Option, boolean, datasets, integer, meeting_place, number, or_none, path, word

INITIALIZERS = ("uniform", "flax_uniform", "zero", "normal")
SCHEDULES = ("constant", "cosine", "quarter_cosine", "tanh", "step", "multistep", "poly", "plateau")

_o = Option
GROUPS: dict[str, list[Option]] = {
    "training": [
        _o("batch_size", integer(1, 16_384), 16, "images per process and step, in training and in evaluation"),
        _o("epochs", integer(1, EPOCHS), 5, "passes over each task's images"),
        _o("seed", integer(0, 2**63 - 1), 42, "seed of every random draw, but for the test of a folder without one"),
        _o("device", str, "auto", "auto (a GPU when there is one), cpu, cuda, cuda:N or mps"),
        _o("print_freq", integer(1, 1_000_000), 10, "steps between progress lines", run_only=True),
    ],
    "speed": [
        _o("precision", str, "auto", "of the ViT: fp32, tf32 and bf16; auto = bf16 on a GPU that has it, else fp32. "
           "What trains, the head and the loss stay in float32; tf32 rounds their products, too",
           ("auto", "fp32", "tf32", "bf16")),
        _o("compile", boolean, False, "make kernels of the ViT's blocks with torch.compile; takes time at the start"),
        _o("speed_test", boolean, False, "measure speed and memory first: speed.json", run_only=True),
        _o("speed_test_only", boolean, False, "measure speed and memory, and do not train", run_only=True),
    ],
    "model": [
        _o("model", str, "vit_base_patch16_224", "any timm VisionTransformer, with or without a tag"),
        _o("input_size", integer(1, 4096), 224, "side of the square input, pixels"),
        _o("pretrained", boolean, True, "start from the pretrained weights of the model's tag"),
        _o("init_checkpoint", or_none(path), None, "backbone weights: official .npz, .safetensors or .pth"),
        _o("input_norm", str, "none", "pixels: none = [0, 1]; imagenet or the model's own mean and std",
           ("none", "imagenet", "model")),
        _o("crop_pct", number(0.05, 1), 0.875, "share of a test image's shorter side that the central crop keeps; "
           "--head ncm and ridge, and --align, see training images in the same way"),
        _o("drop", number(0, 0.99), 0.0, "dropout rate in the prompted pass"),
        _o("drop_path", number(0, 0.99), 0.0, "stochastic depth rate in the prompted pass"),
        _o("freeze", word, ["backbone"],
           "parameters whose names begin with one of these words do not train: backbone, blocks, norm …; no word: "
           "everything trains",
           nargs="*"),
        _o("head", str, "linear", "classifier: a trained linear layer; or without gradient the nearest class mean, or "
           "ridge regression (RanPAC)", ("linear", "ncm", "ridge")),
        _o("random_features", integer(0, 20_000), 10_000, "ridge: random features, M; 0 takes the ViT's own"),
        _o("align", boolean, False, "after each task, retrain the linear head alone on samples of a Gaussian of every "
           "class seen (SLCA); keeps no image"),
        _o("align_samples", integer(1, 10_000), 256, "align: samples of each class and epoch"),
        _o("align_epochs", integer(1, EPOCHS), 5, "align: epochs"),
        _o("align_lr", number(0, RATE), 0.01, "align: learning rate"),
        _o("align_covariance", str, "full", "align: whole covariances, 2.4 MB a class of a ViT-B, or their diagonals",
           ("full", "diagonal")),
        _o("head_type", str, "prompt", "what the head reads: mean prompt output, cls token, mean token, cls + prompts",
           ("prompt", "token", "gap", "token+prompt")),
        _o("head_init", str, "trunc_normal", "trunc_normal = std 0.02 with zero bias", ("trunc_normal", "zero")),
    ],
    "optimizer": [
        _o("opt", str, "adam", "any timm optimizer"),
        _o("opt_eps", number(0, RATE), 1e-8, "epsilon of the optimizer"),
        _o("opt_betas", number(0, 0.999999), [0.9, 0.999], "betas of the optimizer", nargs=2),
        _o("momentum", number(0, 1), 0.9, "momentum of sgd and the like"),
        _o("weight_decay", number(0, RATE), 0.0, "weight decay of matrices (none for biases)"),
        _o("clip_grad", or_none(number(1e-12, 1e12)), 1.0,
           "largest global gradient norm of what trains; none: no clipping"),
        _o("reinit_optimizer", boolean, True, "a new optimizer and schedule for every task; otherwise, and in a stream "
           "without tasks, one of each for the whole run"),
    ],
    "learning rate": [
        _o("lr", number(0, RATE), 0.03, "learning rate for a batch of 256"),
        _o("unscale_lr", boolean, True, "scale lr by the batch of one process, not of all processes together"),
        _o("sched", str, "constant", "schedule over the epochs of a task, or of the whole run: timm's; quarter_cosine: "
           "CODA-Prompt's, lr * cos(0.495 pi * (epoch - 2) / (epochs - 1)) from the second epoch on", SCHEDULES),
        _o("warmup_epochs", integer(0, EPOCHS), 5, "epochs of linear warm-up (not with constant)"),
        _o("warmup_lr", number(0, RATE), 1e-6, "learning rate where the warm-up begins"),
        _o("min_lr", number(0, RATE), 1e-5, "lowest learning rate of cosine, tanh, poly, plateau"),
        _o("decay_epochs", number(1, EPOCHS), 30.0, "epochs between decays (step)"),
        _o("decay_milestones", integer(1, EPOCHS), [30, 60], "epochs at which to decay (multistep)", nargs="+"),
        _o("decay_rate", number(0, 10), 0.1, "factor of a decay (step, multistep, plateau), power (poly)"),
        _o("patience_epochs", integer(0, EPOCHS), 10, "epochs without a lower training loss before a decay (plateau)"),
        _o("cooldown_epochs", integer(0, EPOCHS), 10, "epochs of rest after a decay (plateau)"),
        _o("lr_noise", number(0, 1), None, "one or two shares of the epochs between which the rate is noisy",
           nargs="+"),
        _o("lr_noise_pct", number(0.001, 1), 0.67, "largest share by which noise moves the rate"),
        _o("lr_noise_std", number(0, 100), 1.0, "standard deviation of that noise"),
    ],
    "data": [
        _o("dataset", datasets, "Split-CIFAR100",
           "a data set of the catalogue (a wrong name prints all), or several with commas between: a task for each"),
        _o("data_path", path, "/local_datasets/", "folder of the data, an archive of it, or an .npz file"),
        _o("download", boolean, False, "fetch missing files into data_path", run_only=True),
        _o("shuffle", boolean, False, "shuffle by seed the order of the classes before they are split into "
           "tasks, or of the data sets in a list"),
        _o("class_order", or_none(path), None,
           "order of the classes: a file with one (name or number) on each line; seed or seed:N shuffles; numpy:N "
           "shuffles as numpy.random.seed(N) and permutation do; none: as numbered"),
        _o("subsample", or_none(integer(1, 1_000_000_000)), None, "use the first N training images of each class"),
        _o("subsample_test", or_none(integer(1, 1_000_000_000)), None, "use the first N test images of each class"),
        _o("scale", number(0, 1), [0.05, 1.0], "share of the image that a random crop covers", nargs=2),
        _o("ratio", number(0.01, 100), [3 / 4, 4 / 3], "width / height of a random crop", nargs=2),
        _o("hflip", number(0, 1), 0.5, "probability of a horizontal flip"),
        _o("num_workers", integer(0, 256), 4,
           "batches prepared ahead by a thread, or processes that decode image files; changes no number",
           run_only=True),
        _o("pin_mem", boolean, True, "pinned memory for copies to a GPU", run_only=True),
    ],
    "continual learning": [
        _o("schedule", str, "tasks", "tasks one after another; or gaussian: a stream without tasks, in which classes "
           "come and go gradually", ("tasks", "gaussian")),
        _o("gaussian_episodes", integer(1, 10_000), 200, "episodes of the stream, each with a fixed set of classes"),
        _o("gaussian_steps", integer(1, 10_000), 5, "batches that an episode trains in each of its epochs"),
        _o("gaussian_width", number(1e-6, 1e9), 50.0,
           "standard deviation of a class's probability to be active, in batches of a stream of episodes · steps"),
        _o("gaussian_eval_every", integer(1, 10_000), 10, "episodes between two evaluations"),
        _o("num_tasks", or_none(integer(1, 1_000_000)), None,
           "tasks into which the classes are split equally; none: 10, or as many as classes_per_task or the data make"),
        _o("classes_per_task", or_none(integer(1, 1_000_000)), None,
           "classes of a task; the last task has what is left"),
        _o("adapt", str, "all", "the tasks on which what trains is trained by gradient", ("all", "first", "none")),
        _o("drift", or_none(str), None, "for a head that keeps statistics of features that move as later tasks train: "
           "ignore it, or shift them by how far the current task's features moved on average; none refuses --head ncm "
           "and ridge there", ("ignore", "shift", None)),
        _o("joint", boolean, False, "the bound: all tasks' images in one stretch, as many steps as task after task, "
           "tested on each task"),
        _o("train_mask", boolean, True, "train on the classes of the current task only: other logits are -inf"),
        _o("task_inc", boolean, False, "task-incremental test: logits outside the image's own task are -inf"),
        _o("replay_per_class", integer(0, 1_000_000), 0,
           "images of each class that are kept (L2P-R): from the second task on, each batch is joined by as many of "
           "them, those of the task at hand among them; --train_mask does not concern these"),
    ],
    "prompts": [
        _o("prompt_method", str, "l2p", "L2P; DualPrompt; CODA-Prompt; OnePrompt, which has no pool; none: no prompts",
           ("l2p", "dualprompt", "coda", "oneprompt", "none")),
        _o("prompt_pool", boolean, True, "choose prompts from a pool; otherwise one prompt is always used"),
        _o("prompt_layers", integer(0, 1_000), [0],
           "blocks of the ViT, from 0, that the chosen prompts go to", nargs="+"),
        _o("g_prompt_layers", integer(0, 1_000), [0, 1],
           "dualprompt, oneprompt: blocks with keys and values for every image", nargs="+"),
        _o("g_prompt_length", integer(1, 1_000), 5, "dualprompt, oneprompt: how many of those in a block"),
        _o("orthogonality", number(0, 1e6), 0.1,
           "coda: weight of the penalty on components that are not orthogonal, mu"),
        _o("prompt_choice", str, "nearest", "l2p: the prompts of the nearest keys; or, as controls, random ones or the "
           "first ones for every image, without keys and query", ("nearest", "random", "fixed")),
        _o("size", integer(1, 10_000), 10, "prompts in the pool, M"),
        _o("length", integer(1, 1_000), 5, "vectors in a prompt, L; coda: half of them keys, half values"),
        _o("top_k", integer(1, 10_000), 5, "prompts chosen for an image, N"),
        _o("initializer", str, "uniform", "prompts: U(-1, 1), U(0, 0.01), zeros, N(0, 1)", INITIALIZERS),
        _o("prompt_key", boolean, True, "a trained key for every prompt; otherwise the mean of its vectors"),
        _o("prompt_key_init", str, "uniform", "keys, as for prompts", INITIALIZERS),
        _o("use_prompt_mask", boolean, False, "in training, task t uses prompts t·top_k to (t+1)·top_k - 1"),
        _o("shared_prompt_pool", boolean, False, "a task's prompts start from the previous task's"),
        _o("shared_prompt_key", boolean, False, "a task's keys start from the previous task's"),
        _o("batchwise_prompt", boolean, True, "one choice for a whole batch of one process, by vote"),
        _o("embedding_key", str, "cls", "query: cls output, or statistics of the embedded patches",
           ("cls", "mean", "max", "mean_max")),
        _o("prompt_pos_embed", str, "cls", "position embedding added to prompts", ("none", "cls")),
        _o("pull_constraint", boolean, True, "pull the chosen keys towards the query"),
        _o("pull_constraint_coeff", number(0, RATE), 0.1, "weight of that pull, lambda"),
        _o("eval_per_image", str, "final", "when to evaluate the choice per image beside the batch vote",
           ("final", "always", "never")),
    ],
    "output": [
        _o("output_dir", path, "./output/EXPERIMENT", "where the run is written; '' saves nothing", run_only=True),
        _o("overwrite", boolean, False, "remove a run that output_dir holds and begin anew", run_only=True),
        _o("resume", boolean, False, "continue the run in output_dir, or begin it", run_only=True),
        _o("eval", boolean, False, "evaluate the checkpoints of the run in output_dir", run_only=True),
    ],
    "processes": [
        _o("world_size", or_none(integer(1, 100_000)), None, "processes expected; the launcher's number when not given",
           run_only=True),
        _o("dist_url", meeting_place, "env://", "where the processes meet", run_only=True),
        _o("dist_timeout", number(1, 1e6), 1800.0, "seconds that a process waits for the others before it gives up",
           run_only=True),
        _o("local_rank", or_none(integer(0, 100_000)), None, "given by old launchers; the environment counts",
           run_only=True),
    ],
    "accepted, but doing nothing (the PyTorch re-implementation never reads them either)": [
        _o(name, str, None, "does nothing", inert=True, run_only=True, nargs="?")
        for name in ("color_jitter", "aa", "smoothing", "train_interpolation", "reprob", "remode", "recount",
                     "global_pool", "predefined_key")
    ],
}
OPTIONS: dict[str, Option] = {option.name: option for group in GROUPS.values() for option in group}
ALIASES = {"dr": "decay_rate"}
"""Short names that the PyTorch re-implementation has, too."""
