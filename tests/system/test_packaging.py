#!/usr/bin/env python3
"""Packaging for centres: the module file leads to an installed tree, the ReFrame check passes on this machine and fails with a
flipped digest, EasyBuild reads its recipes. Each part is skipped where its program is not in PATH; the files of what
cannot run say so at their head."""
import ast
import os
import re
import shutil
import subprocess
import unittest

import moe

PACKAGING = os.path.join(moe.SOURCE, "launch", "packaging")
DIGEST = re.compile(r'\[small\.q8k\]\nversion = 2\n(?:\w+ = .*\n)*?tg128 = "(\w+)"')


def read(*parts):
    with open(os.path.join(PACKAGING, *parts), encoding="utf-8") as f:
        return f.read()


def said(line, **environment):
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=300, cwd=moe.FOLDER,
                          env=os.environ | environment)


def program(name):
    return shutil.which(name) or next(filter(os.path.exists, [f"/usr/lib/x86_64-linux-gnu/{name}", f"/usr/share/modules/{name}"]), None)


class Files(unittest.TestCase):
    def test_what_was_not_run_says_so(self):
        for parts in (("spack", "package.py"), ("apptainer", "moe_run.def")):
            self.assertRegex(read(*parts), r"^# Unchecked")
        ast.parse(read("spack", "package.py"))

    def test_the_known_answer_is_that_of_the_table(self):
        with open(os.path.join(moe.SOURCE, "configs", "known-answers.toml"), encoding="utf-8") as f:
            digest = DIGEST.search(f.read()).group(1)
        self.assertIn(f'value="{digest}"', read("reframe", "moe_run_check.py"))

    def test_a_shell_reads_the_lists_of_packages(self):
        """Every row is a package, a command and its use: an apostrophe in one would end the list."""
        done = said(["sh", "-c", f". {os.path.join(moe.SOURCE, 'launch', 'packages')}; "
                     "printf %s \"$build_packages$test_packages$plot_packages$browser_packages$cluster_packages\""])
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        rows = [line for line in done.stdout.splitlines() if line]
        self.assertEqual([line for line in rows if line.count("|") != 2], [])
        self.assertGreater(len(rows), 15)

    def test_packages_of_the_image_are_those_of_the_build(self):
        """launch/packages is what is tried on every machine."""
        with open(os.path.join(moe.SOURCE, "launch", "packages"), encoding="utf-8") as f:
            table = f.read().split("build_packages='\n")[1].split("'")[0]
        needed = {line.split("|")[0].strip() for line in table.splitlines()}
        self.assertLessEqual(needed, set(read("apptainer", "moe_run.def").split()))


class Module(unittest.TestCase):
    @unittest.skipUnless(program("modulecmd.tcl"), "no environment-modules")
    def test_load(self):
        prefix = moe.fresh()
        place = os.path.join(prefix, "share", "moe_run", "modulefiles")
        shutil.copytree(os.path.join(PACKAGING, "modulefiles"), place)
        done = said([program("modulecmd.tcl"), "python", "load", os.path.join(place, "moe_run", "0.1.0")])
        self.assertIn(f"{os.path.realpath(prefix)}/bin", done.stdout.replace(prefix, os.path.realpath(prefix)), done.stderr)
        self.assertIn("MOE_RUN_SHARE", done.stdout)


class ReFrame(unittest.TestCase):
    @unittest.skipUnless(shutil.which("reframe"), "no reframe")
    def test_digest_decides(self):
        for more, code in ([], 0), (["-S", "digest=" + "0" * 16], 1):
            line = ["reframe", "-C", os.path.join(PACKAGING, "reframe", "settings.py"), "-c",
                    os.path.join(PACKAGING, "reframe", "moe_run_check.py"), "-S", f"moe_run={moe.PROGRAM}", "-S", "test=tg128"]
            done = said([*line, *more, "--prefix", moe.fresh(), "-r"])
            self.assertEqual(done.returncode, code, done.stdout)
            self.assertIn("tok/s" if not more else "expected 0000000000000000", done.stdout)


class EasyBuild(unittest.TestCase):
    @unittest.skipUnless(shutil.which("eb") and program("modulecmd.tcl"), "no eb, or no environment-modules")
    def test_recipes_are_read(self):
        path = os.path.dirname(shutil.which("eb")) + os.pathsep + os.environ["PATH"]  # eb takes the first python
        modules = {"PATH": path, "EASYBUILD_MODULES_TOOL": "EnvironmentModules", "EASYBUILD_MODULE_SYNTAX": "Tcl", "EASYBUILD_PREFIX": moe.fresh(),
                   "EASYBUILD_ALLOW_USE_AS_ROOT_AND_ACCEPT_CONSEQUENCES": "1"}
        for name in os.listdir(os.path.join(PACKAGING, "easybuild")):
            done = said(["bash", "-c", '. /usr/share/modules/init/bash && exec eb "$0" --dry-run --robot',
                         os.path.join(PACKAGING, "easybuild", name)], **modules)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertIn(name, done.stdout)


if __name__ == "__main__":
    moe.main()
