"""Domains: the same classes in several kinds of pictures, such as doodles and icons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metadraw.data.composed import PART, Composed, OnePartEach
from metadraw.data.drawings import Drawings
from metadraw.data.episode import Episode, Examples
from metadraw.data.hashing import fold, start, uniform
from metadraw.data.image_folder import ImageFolder
from metadraw.data.tasks import SPLITS, Sampler, check_split
from metadraw.errors import InputError, to_path

_TASKS = ("per_domain", "mixed")


class Domains(Composed):
    """Tasks whose pictures come from several data sets, of the classes that all of these have.

    Episode i has the same classes in the same order whatever its domain, so that accuracies in
    several domains are of the same tasks.

    Args:
        domains: the config of each domain's data set, by the domain's name.
        tasks: ``per_domain``: all pictures of a task come from one domain, drawn for each task;
            ``mixed``: the domain is drawn for each picture.
        support_domain: the domain of all support pictures; with ``per_domain`` only, that of the
            task if `None`.
        query_domain: that of all query pictures, likewise.
        test_domains: the domains of meta-test, in which nothing is meta-trained or -validated; all
            domains in all splits if `None`.
        **episodes: what `EpisodeDataModule` takes.

    Raises:
        InputError: an impossible value; see also `EpisodeDataModule`.
    """

    key_of_parts = "domains"

    def __init__(
        self,
        *,
        domains: Mapping[str, Any],
        tasks: str,
        support_domain: str | None,
        query_domain: str | None,
        test_domains: Sequence[str] | None,
        **episodes: Any,
    ) -> None:
        # Classes are chosen among those that all domains share, not in each domain.
        of_all = dict.fromkeys(("classes", "exclude_classes"))
        super().__init__(parts=domains, **episodes | of_all)
        self.classes = episodes.get("classes")
        self.exclude_classes = episodes.get("exclude_classes")
        if tasks not in _TASKS:
            raise InputError(f"data.tasks={tasks}: must be one of {', '.join(_TASKS)}")
        fixed = {"support_domain": support_domain, "query_domain": query_domain}
        for key, name in fixed.items():
            if name is not None:
                self._check(key, name)
            if name is not None and tasks == "mixed":
                raise InputError(f"data.{key}={name}: must be null with data.tasks=mixed")
        if test_domains is not None:
            if isinstance(test_domains, str) or not isinstance(test_domains, Sequence):
                raise InputError(f"data.test_domains={test_domains}: must be a list, or null")
            for name in test_domains:
                self._check("test_domains", name)
            if not 0 < len(set(test_domains)) < len(self.parts):
                raise InputError(
                    f"data.test_domains={list(test_domains)}: must leave some of "
                    f"{', '.join(self.parts)} for meta-training, and name at least one"
                )
        self.tasks = tasks
        self.support_domain, self.query_domain = support_domain, query_domain
        if support_domain and query_domain and support_domain != query_domain:
            # Of what is not used, as few drawings as possible.
            learned, asked = self.parts[support_domain], self.parts[query_domain]
            learned.queries = learned.train_queries = 1
            asked.shots = asked.train_shots = 1
        self.test_domains = test_domains

    def _check(self, key: str, name: str) -> None:
        if name not in self.parts:
            known = ", ".join(self.parts)
            raise InputError(f"data.{key}: {name} is not a domain; there are {known}")

    def compose(self) -> Drawings:
        """Load all domains, restrict them to the classes that they share, and split these.

        Returns:
            The drawings of the first domain.

        Raises:
            InputError: no class is in all domains; see also `EpisodeDataModule.setup`.
        """
        loaded = {}
        for name, part in self.parts.items():
            with self.naming(name):
                loaded[name] = part.load()
        of_each = [set(drawings.classes) for drawings in loaded.values()]
        shared = [c for c in next(iter(loaded.values())).classes if c in set.intersection(*of_each)]
        if not shared:
            raise InputError(f"data.domains: no class is in all of {', '.join(self.parts)}")
        shared = self.chosen(shared)
        for name, part in self.parts.items():
            place = {c: position for position, c in enumerate(loaded[name].classes)}
            images = [loaded[name].images[place[c]] for c in shared]
            with self.naming(name):
                part.use(replace(loaded[name], images=images, classes=tuple(shared)))
        how = {
            "tasks": self.tasks,
            "support_domain": self.support_domain,
            "query_domain": self.query_domain,
            "test_domains": self.test_domains and list(self.test_domains),
        }
        first = self._first
        self.splits = first.splits
        named = {key: first.provenance[key] for key in first.provenance if key.endswith("_classes")}
        return replace(first.drawings, provenance={**self.origin(**how), **named})

    def domains_of(self, split: str) -> list[str]:
        """The domains of a split's tasks."""
        if self.test_domains is None or split == "all":
            return list(self.parts)
        return [name for name in self.parts if (name in self.test_domains) == (split == "test")]

    def groups(self, split: str, number: Tensor) -> list[str] | None:
        """The domain of the query pictures of each episode; `None` if they have several."""
        if self.tasks == "mixed":
            return None
        if self.query_domain is not None:
            return [self.query_domain] * len(number)
        names = self.domains_of(split)
        return [names[part] for part in self._one_each([], split).part_of(number).tolist()]

    def _one_each(self, samplers: Sequence[Sampler], split: str) -> OnePartEach:
        count = len(self.domains_of(split))
        return OnePartEach(samplers, [1 / count] * count, split, self.seeds[split])

    def episodes(self, split: str, device: torch.device | str = "cpu") -> Sampler:  # type: ignore[override]
        """The sampler of one split; see `EpisodeDataModule.episodes`."""
        check_split(split)
        self.setup()
        names = self.domains_of(split)

        def sampler(name: str) -> Sampler:
            with self.naming(name):
                return self.parts[name].episodes(split, device)

        if self.tasks == "mixed":
            return Mixed([sampler(name) for name in names], split, self.seeds[split])
        if self.support_domain and self.support_domain == self.query_domain:
            return sampler(self.support_domain)
        support, query = (
            self._one_each([sampler(each) for each in names], split)
            if name is None
            else sampler(name)
            for name in (self.support_domain, self.query_domain)
        )
        return Across(support, query)


class Across:
    """Tasks to learn in one domain and to be asked in another.

    Args:
        support: draws the episodes whose support sets are used.
        query: draws the episodes of the same classes whose query sets are used, and all but their
            support sets.
    """

    def __init__(self, support: Sampler, query: Sampler) -> None:
        self.support, self.query = support, query

    def __call__(self, number: Tensor) -> Episode:
        """The episodes with these numbers; see `Sampler`."""
        return self.query(number)._replace(support=self.support(number).support)


class Mixed:
    """Tasks whose pictures come from several domains, drawn for each picture.

    Args:
        samplers: of the domains; episode i of all has the same classes.
        split: one of `SPLITS`, part of the hash.
        seed: another seed gives other choices.
    """

    def __init__(self, samplers: Sequence[Sampler], split: str, seed: int) -> None:
        self.samplers = samplers
        self._state = start(seed, SPLITS.index(split))

    def __call__(self, number: Tensor) -> Episode:
        """The episodes with these numbers; see `Sampler`."""
        of_domains = [sampler(number) for sampler in self.samplers]
        state = fold(fold(self._state.to(number.device), number), PART)

        def mixed(sets: list[Examples], kind: int) -> Examples:
            picture = torch.arange(sets[0].y.shape[1], device=number.device)
            random = uniform(fold(fold(state, torch.tensor(kind))[:, None], picture))
            domain = (random * len(sets)).long()  # [T, B]

            def pick(*values: Tensor) -> Tensor:
                chosen = domain.to(values[0].device)
                tasks, pictures = torch.meshgrid(
                    *(torch.arange(size, device=chosen.device) for size in chosen.shape),
                    indexing="ij",
                )
                return torch.stack(values)[chosen, tasks, pictures]

            return tree_map(pick, *sets)

        first = of_domains[0]
        return first._replace(
            support=mixed([episode.support for episode in of_domains], 0),
            query=mixed([episode.query for episode in of_domains], 1),
            sets={n: mixed([episode.sets[n] for episode in of_domains], 2) for n in first.sets},
        )


class DomainFolder(Domains):
    """Domains in a folder, ``FOLDER/DOMAIN/CLASS/IMAGE``, as DomainNet, Office-Home and PACS are.

    Args:
        path: the folder.
        domains: the sub-folders to use, each a domain; see `ImageFolder`.
        prepare: see `ImageFolder`.
        samples_per_class: likewise.
        drawings_seed: likewise.
        cache_dir: likewise.
        **options: what `Domains` takes.

    Raises:
        InputError: see `Domains`.
    """

    def __init__(
        self,
        *,
        path: str | Path,
        domains: Sequence[str],
        prepare: str,
        samples_per_class: int | None,
        drawings_seed: int,
        cache_dir: str | Path,
        **options: Any,
    ) -> None:
        if isinstance(domains, str) or not isinstance(domains, Sequence):
            raise InputError(f"data.domains={domains}: must be a list of sub-folders of data.path")
        own = {
            "_target_": f"{ImageFolder.__module__}.{ImageFolder.__qualname__}",
            "prepare": prepare,
            "samples_per_class": samples_per_class,
            "drawings_seed": drawings_seed,
            "cache_dir": cache_dir,
        }
        folder = to_path("data.path", path)
        parts = {name: {**own, "path": str(folder / str(name))} for name in domains}
        super().__init__(domains=parts, **options)
