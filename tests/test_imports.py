"""Each block imports alone, in a fresh process, without triton and without its siblings."""

import subprocess
import sys

import pytest

BLOCKS = ("attention", "kv", "ops", "pipeline", "sched", "sharding")


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", BLOCKS)
def test_block_imports_without_triton_or_siblings(block: str) -> None:
    run(
        "import sys\n"
        "sys.modules['triton'] = None  # importing it now raises\n"
        f"import blocks.{block}\n"
        f"siblings = {[f'blocks.{other}' for other in BLOCKS if other != block]}\n"
        "loaded = [name for name in siblings if name in sys.modules]\n"
        "assert not loaded, loaded\n"
        "assert not any(name.startswith('recipes') for name in sys.modules)\n"
    )


def test_sched_imports_without_torch() -> None:
    run("import sys, blocks.sched\nassert 'torch' not in sys.modules")


def test_profiles_and_placements_import_without_torch_or_numpy() -> None:
    run(
        "import sys\n"
        "from blocks.sched.placement import Placement\n"
        "from blocks.sched.profile import bundled_profile\n"
        "assert bundled_profile('bert-1.3b').timings\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
    )


def test_clusters_are_simulated_without_torch() -> None:
    run(
        "import sys\n"
        "sys.modules['torch'] = None  # importing it now raises\n"
        "import blocks.sched.cluster_sim.generation\n"
        "from blocks.sched.cluster_sim import simulate\n"
        "from blocks.sched.placement import Placement\n"
        "from blocks.sched.profile import Configuration, single_pass\n"
        "from blocks.sched.workload import Workload\n"
        "profiles = {'a': single_pass('a', 'd', {(1, 1): [0.5]}, 1)}\n"
        "placement = Placement.equal_groups(1, Configuration(1, 1), [['a']])\n"
        "assert simulate(placement, profiles, Workload.of(['a'], [0.0])).attainment == 1\n"
    )


def test_placements_are_planned_without_torch() -> None:
    run(
        "import sys\n"
        "sys.modules['torch'] = None  # importing it now raises\n"
        "import recipes.place.plan_verb, recipes.place.simulate_verb, recipes.place.view\n"
    )


def test_planning_side_of_sharding_imports_without_torch() -> None:
    run(
        "import sys\n"
        "from blocks.sharding import Mesh, Shard, ShardingSpec, plan_reshard, collective_bytes\n"
        "from blocks.sharding.rules import attention_rule, conv_rule, linear_rule\n"
        "assert 'torch' not in sys.modules\n"
        "from blocks.sharding import reshard\n"
        "assert callable(reshard) and 'torch' in sys.modules\n"
    )


def test_planning_side_of_pipeline_works_without_torch() -> None:
    run(
        "import sys\n"
        "sys.modules['torch'] = None  # importing it now raises\n"
        "from blocks.pipeline import partition_layers, slice_batch, slice_tokens, unit_cost\n"
        "assert 'numpy' not in sys.modules, 'loaded by the first plan'\n"
        "slice_tokens(unit_cost(0.5, 64), 64, 4)\n"
        "slice_batch(unit_cost(0.5, 64), 64, 2, 4)\n"
        "partition_layers([1, 2, 3], 2)\n"
    )


def test_the_allocator_works_without_torch_or_numpy() -> None:
    run(
        "import sys\n"
        "sys.modules['torch'] = sys.modules['numpy'] = None  # importing them now raises\n"
        "import blocks.kv.waste\n"
        "from blocks.kv import BlockManager\n"
        "from blocks.sched import Request, Scheduler\n"
        "manager = BlockManager(num_blocks=8, block_size=4)\n"
        "scheduler = Scheduler(manager, token_budget=8, max_num_seqs=2, max_model_len=16)\n"
        "request = Request(request_id='a', prompt_tokens=[1, 2, 3], max_tokens=2)\n"
        "scheduler.add(request)\n"
        "assert scheduler.schedule().entries[0].num_tokens == 3\n"
        "manager.check_invariants()\n"
    )


@pytest.mark.parametrize("block", BLOCKS)
def test_public_names_exist(block: str) -> None:
    run(
        f"import blocks.{block} as block\n"
        "assert block.__all__\n"
        "assert block.__doc__\n"
        "for name in block.__all__: getattr(block, name)\n"
    )


@pytest.mark.parametrize("recipe", ["model", "place", "plan", "serve", "train"])
def test_recipes_never_import_transformers(recipe: str) -> None:
    run(
        "import sys, importlib, pkgutil\n"
        f"import recipes.{recipe} as package\n"
        "for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
        "assert 'transformers' not in sys.modules\n"
    )


@pytest.mark.parametrize(("recipe", "package"), [("train", "tokenizers"), ("serve", "msgspec")])
def test_a_missing_package_is_told_with_the_extra_that_brings_it(recipe: str, package: str) -> None:
    run(
        "import sys\n"
        f"sys.modules[{package!r}] = None  # importing it now raises\n"
        "try:\n"
        f"    import recipes.{recipe}\n"
        "except ModuleNotFoundError as error:\n"
        "    assert \"pip install -e '.[serve]'\" in error.__notes__[0]\n"
        "else:\n"
        "    raise AssertionError\n"
    )
