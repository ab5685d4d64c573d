#!/usr/bin/env python3
"""Disks that fail under meshd, planet, meshctl and the plugin: killed at any call, EIO, ENOSPC, EROFS.

    tests/disk/run.py FAULTS [SEED]      needs root, cc, the programs in PODMESH_BIN_DIR or target/release

A planet and two nodes on one wire; a shim (shim.c) fails what they do below their state folders. After each
fault the disk is sound again, whoever died is started anew, and everything that had been a member is one: its
keys fit, its peer is up, and its files have a good generation. Prints what it did, and figures."""
import errno, json, mmap, os, random, shutil, signal, struct, subprocess, sys, tempfile, time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.environ.get("PODMESH_BIN_DIR", f"{TOP}/target/release")
PATIENCE = 30  # seconds, for everybody to be well again
KINDS = [("killed", 0), ("EIO", errno.EIO), ("ENOSPC", errno.ENOSPC), ("EROFS", errno.EROFS)]


class Failed(Exception):
    pass


def run(*words, check=True, env=None, text=None, timeout=60):
    done = subprocess.run(words, capture_output=True, text=True, env=env, input=text, timeout=timeout)
    if check and done.returncode:
        raise Failed(f"{' '.join(words)}: {done.returncode}: {done.stdout}{done.stderr}")
    return done


def until(what, is_so, patience=PATIENCE):
    end = time.monotonic() + patience
    while not is_so():
        if time.monotonic() > end:
            raise Failed(f"not within {patience} s: {what}")
        time.sleep(0.03)


class Disk:
    """What the shim is told about one folder."""

    def __init__(self, world, name):
        self.folder = f"{world.folder}/{name}"
        os.makedirs(self.folder, mode=0o700)
        path = f"{world.folder}/{name}.control"
        with open(path, "wb") as file:
            file.write(bytes(4096))
        self.file = open(path, "r+b")
        self.map = mmap.mmap(self.file.fileno(), 4096)
        self.env = dict(os.environ, LD_PRELOAD=world.shim, FAULT_CONTROL=path, FAULT_FOLDER=self.folder)

    def set(self, *numbers):
        self.map[: 8 * len(numbers)] = struct.pack(f"<{len(numbers)}q", *numbers)

    def fail(self, kind, before, count, reads=False):
        self.set(0, before, count, kind[1], 0, int(reads))
        self.set(1 if kind[0] == "killed" else 2)

    def heal(self):
        self.set(0, 0, 0, 0, 0, 0)


class Machine:
    """A namespace on the wire, and one program in it that runs on."""

    def __init__(self, world, name, address):
        self.world, self.name, self.address = world, name, address
        self.space = f"{world.prefix}-{name}"
        self.disk = Disk(world, name)
        self.process = None
        run("ip", "netns", "add", self.space)
        world.spaces.append(self.space)
        wire = f"{world.prefix}-wire"
        run("ip", "link", "add", "up0", "netns", self.space, "type", "veth", "peer", "name", f"v-{name}", "netns", wire)
        run("ip", "-n", wire, "link", "set", f"v-{name}", "master", "br0", "up")
        for words in (["link", "set", "lo", "up"], ["link", "set", "up0", "up"], ["addr", "add", f"{address}/24", "dev", "up0"]):
            run("ip", "-n", self.space, *words)
        self.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")

    def run(self, *words, **options):
        return run("ip", "netns", "exec", self.space, *words, **options)

    def spawn(self, *words):
        log = open(f"{self.world.folder}/{self.name}.log", "ab")
        inside = ["ip", "netns", "exec", self.space, *words]
        self.process = subprocess.Popen(inside, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.disk.env)

    def ends(self, how):
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.process.wait(20)

    def is_running(self):
        return self.process is not None and self.process.poll() is None


class Planet(Machine):
    def __init__(self, world):
        super().__init__(world, "p", "203.0.113.10")
        self.places = ["--state-dir", f"{self.disk.folder}/state"]
        self.socket = ["--runtime-dir", f"{self.disk.folder}/run"]
        self.key = self.run(f"{BIN}/planet", "init", *self.places).stdout.split(": ")[1].strip()

    def start(self):
        self.spawn(f"{BIN}/planet", "run", *self.places, *self.socket, "--listen", f"{self.address}:7077")

    def status(self):
        try:
            return json.loads(self.run(f"{BIN}/planet", "status", *self.socket, "--json").stdout)
        except (Failed, ValueError):
            return {"members": []}


class Node(Machine):
    def __init__(self, world, name, number):
        super().__init__(world, name, f"203.0.113.{number}")
        with open(f"{self.disk.folder}/meshd.toml", "w") as file:
            file.write('subnet-env = ""\nshards = 1\n')
        self.socket = f"{self.disk.folder}/run/meshd.sock"

    def start(self):
        place = self.disk.folder
        self.spawn(f"{BIN}/meshd", "--config", f"{place}/meshd.toml", "--state-dir", f"{place}/state", "--runtime-dir", f"{place}/run")

    def ctl(self, *words, check=True):
        return self.run(f"{BIN}/meshctl", "--socket", self.socket, *words, check=check)

    def view(self, what):
        try:
            return json.loads(self.ctl(what, "--json").stdout)
        except (Failed, ValueError):
            return {}

    def cni(self, verb, pod, env=None, check=True):
        place = self.disk.folder
        conf = {"cniVersion": "1.1.0", "name": "podmesh", "type": "podmesh", "runtimeDir": f"{place}/run",
                "stateDir": f"{place}/state", "dataDir": f"{place}/cni"}
        env = dict(env or os.environ, CNI_COMMAND=verb, CNI_CONTAINERID=pod, CNI_IFNAME="eth0", CNI_PATH=BIN,
                   CNI_NETNS=f"/run/netns/{self.world.prefix}-pod")
        return self.run(f"{BIN}/podmesh", env=env, check=check, text=json.dumps(conf))


class World:
    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="podmesh-disk-")
        self.prefix = f"pmf{os.getpid()}"
        self.spaces, self.count = [], 0
        self.shim = f"{self.folder}/shim.so"
        run("cc", "-O1", "-shared", "-fPIC", "-o", self.shim, f"{TOP}/tests/disk/shim.c")

    def build(self):
        for name in ("wire", "pod"):
            run("ip", "netns", "add", f"{self.prefix}-{name}")
            self.spaces.append(f"{self.prefix}-{name}")
        run("ip", "-n", f"{self.prefix}-wire", "link", "add", "br0", "type", "bridge")
        run("ip", "-n", f"{self.prefix}-wire", "link", "set", "br0", "up")
        self.planet = Planet(self)
        self.desk = Disk(self, "desk")
        self.network = f"{self.desk.folder}/network"
        run(f"{BIN}/meshctl", "network", "create", "lab", "--planet", f"p={self.planet.key}@203.0.113.10:7077",
            "--no-passphrase", "--dir", self.network)
        self.planet.run(f"{BIN}/planet", "adopt", f"{self.network}/network.podmesh", *self.planet.places, *self.planet.socket)
        self.planet.start()
        self.nodes = [Node(self, "a", 1), Node(self, "b", 2)]
        for node in self.nodes:
            node.start()
            until(f"{node.name} answers", lambda: os.path.exists(node.socket))
            node.ctl("join", self.token(), "--name", node.name)
        self.well()
        self.id = [node.view("status")["node"]["id"] for node in self.nodes]

    def token(self, env=None, check=True):
        self.count += 1
        path = f"{self.folder}/{self.count}.token"
        done = run(f"{BIN}/meshctl", "token", "create", "--dir", self.network, "--out", path, env=env, check=check)
        return path if done.returncode == 0 else None

    def well(self):
        """Whoever died runs again, and everybody is what they were."""
        for machine in [self.planet, *self.nodes]:
            machine.disk.heal()
        until("all programs run", self.all_run)
        for node, other in zip(self.nodes, reversed(self.nodes)):
            until(f"{node.name} is a member in good standing", lambda: self.is_well(node, other))

    def all_run(self):
        for machine in [self.planet, *self.nodes]:
            if not machine.is_running():
                machine.start()
        return all(machine.status().get("network") for machine in [self.planet]) and all(
            node.view("status") for node in self.nodes)

    @staticmethod
    def is_well(node, other):
        status = node.view("status")
        up = [peer for peer in node.view("peers").get("items", []) if peer["name"] == other.name and peer["state"] == "up"]
        keys = [health for health in status.get("health", []) if "keys that this node doesn't have" in health["message"]]
        disk = [health for health in status.get("health", []) if health["code"] == "MESH-DISK-001"]
        return status.get("state") == "online" and up and not keys and not disk

    def tear_down(self):
        for machine in [getattr(self, "planet", None), *getattr(self, "nodes", [])]:
            if machine and machine.is_running():
                machine.ends(signal.SIGKILL)
        for space in self.spaces:
            run("ip", "netns", "del", space, check=False)
        shutil.rmtree(self.folder)


def whole(path):
    """Whether a file of meshd's state is complete, as far as its frame tells."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError:
        return False
    return content[:8] == b"podmesh\0" and len(content) == 18 + 32 + int.from_bytes(content[10:18], "little")


# One fault each: begins it, does something that writes, and leaves the rest to `well`.

def rotate(world, chance, fault):
    node = chance.choice(world.nodes)
    node.disk.fail(*fault)
    node.ctl("node", "rotate-keys", check=False)


def restart(world, chance, fault):
    node = chance.choice(world.nodes)
    node.ends(chance.choice([signal.SIGKILL, signal.SIGTERM]))
    node.disk.fail(*fault, reads=chance.random() < 0.5)
    node.start()
    time.sleep(chance.uniform(0.05, 0.4))


def planet_restarts(world, chance, fault):
    world.planet.ends(chance.choice([signal.SIGKILL, signal.SIGTERM]))
    world.planet.disk.fail(*fault)
    world.planet.start()
    time.sleep(chance.uniform(0.05, 0.4))


def planet_writes(world, chance, fault):
    world.planet.disk.fail(*fault)
    chance.choice(world.nodes).ctl("node", "rotate-keys", check=False)


def planet_is_restored(world, chance, fault):
    planet, backup = world.planet, f"{world.folder}/{world.count}.backup"
    world.count += 1
    planet.run(f"{BIN}/planet", "backup", backup, *planet.places, *planet.socket)
    planet.ends(signal.SIGTERM)
    planet.disk.fail(*fault)
    planet.run(f"{BIN}/planet", "restore", backup, *planet.places, env=planet.disk.env, check=False)


def operator_writes(world, chance, fault):
    world.desk.fail(*fault)
    token = world.token(env=world.desk.env, check=False)
    world.desk.heal()
    world.token()
    if token and not os.path.getsize(token):
        raise Failed("meshctl says that it made a token, and the file is empty")


def pod_comes_and_goes(world, chance, fault):
    node = chance.choice(world.nodes)
    verb = chance.choice(["ADD", "DEL"])
    if verb == "DEL":
        node.cni("ADD", "pod")
    node.disk.fail(*fault)
    node.cni(verb, "pod", env=node.disk.env, check=False)
    node.disk.heal()
    # What a runtime does about both, and then a pod that lives.
    node.cni("DEL", "pod")
    node.cni("ADD", "pod")
    node.cni("DEL", "pod")


FAULTS = [rotate, restart, rotate, restart, planet_restarts, planet_writes, planet_is_restored, operator_writes, pod_comes_and_goes]


def taken_away(world, chance):
    """Files, or the folders of them, vanish under the programs; all is there again before the next life."""
    machines = [world.planet, *world.nodes]
    needed = [["planet.redb", "planet.key"], *[[f"{name}{end}" for name in ("identity", "state") for end in ("", ".previous")] for _ in world.nodes]]
    for machine, names in zip(machines, needed):
        folder = f"{machine.disk.folder}/state"
        gone = chance.sample(names, chance.randint(1, len(names))) if chance.random() < 0.6 else None
        print(f"taken away from {machine.name}: {gone or 'the folder'}", flush=True)
        if gone is None:
            shutil.rmtree(folder)
        else:
            [os.remove(f"{folder}/{name}") for name in gone]
    for machine, names in zip(machines, needed):
        until(f"{machine.name} writes anew: {names}", lambda: all(os.path.exists(f"{machine.disk.folder}/state/{name}") for name in names))
    for node in world.nodes:
        until(f"{node.name} says so", lambda: any(health["code"] == "MESH-DISK-002" for health in node.view("status").get("health", [])))
    until("the planet says so", lambda: any("taken away" in remark for remark in world.planet.status().get("remarks", [])))
    for machine in machines:
        machine.ends(signal.SIGKILL)


def must_be_as_before(world):
    ids = [node.view("status")["node"]["id"] for node in world.nodes]
    if ids != world.id or len(world.planet.status()["members"]) != 2:
        raise Failed(f"not the same members: {ids}, {world.planet.status()['members']}")
    for node in world.nodes:
        for name in ("identity", "state"):
            paths = [f"{node.disk.folder}/state/{name}{end}" for end in ("", ".previous")]
            if not all(whole(path) for path in paths):
                raise Failed(f"{paths}: not two whole generations")


def main():
    faults, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    print(f"seed {seed}", flush=True)
    chance, world, longest = random.Random(seed), World(), 0.0
    try:
        world.build()
        for number in range(faults):
            what, kind = FAULTS[number % len(FAULTS)], chance.choice(KINDS)
            fault = (kind, int(chance.expovariate(0.12)), chance.choice([0, 1, 3]))
            print(f"{number}: {what.__name__}, {kind[0]} after {fault[1]} calls, {fault[2] or 'all'}", flush=True)
            what(world, chance, fault)
            begin = time.monotonic()
            world.well()
            longest = max(longest, time.monotonic() - begin)
            must_be_as_before(world)
        taken_away(world, chance)
        world.well()
        must_be_as_before(world)
        for machine in [world.planet, *world.nodes]:
            with open(f"{world.folder}/{machine.name}.log", errors="replace") as log:
                if "panicked" in log.read():
                    raise Failed(f"{machine.name} panicked")
    except Failed as failed:
        for name in ("p", "a", "b"):
            path = f"{world.folder}/{name}.log"
            if os.path.exists(path):
                print(f"--- {name}\n" + "".join(open(path, errors="replace").readlines()[-12:]))
        world.tear_down()
        sys.exit(f"FAIL (seed {seed}): {failed}")
    world.tear_down()
    print(f"figure {faults} faults of disks, seed {seed}: 2 of 2 members, keys fit, files whole; well again in at most {longest:.1f} s")


main()
