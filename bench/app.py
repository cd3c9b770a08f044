"""The Python workload: objects, dictionaries, text, JSON, integers."""
import hashlib
import json
import re


class Body:
    def __init__(self, x, v):
        self.x, self.v = x, v

    def step(self, others):
        for other in others:
            if other is not self:
                self.v += (other.x - self.x) % 97 - 48
        self.x = (self.x + self.v) % 1000003


def bodies():
    world = [Body(i * 7919 % 1009, i) for i in range(30)]
    for _ in range(60):
        for body in world:
            body.step(world)
    return sum(b.x for b in world)


def words():
    text = " ".join("word%d %s" % (i * i % 977, "xyz"[i % 3] * (i % 5)) for i in range(12000))
    counts = {}
    for word in re.findall(r"[a-z]+\d*", text):
        counts[word] = counts.get(word, 0) + 1
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def document():
    data = [{"id": i, "name": "item %d" % i, "tags": [i % 3, i % 5], "price": i / 4} for i in range(4000)]
    return len(json.dumps(json.loads(json.dumps(data)), indent=1, sort_keys=True))


def primes(limit):
    found = []
    for n in range(2, limit):
        if all(n % p for p in found if p * p <= n):
            found.append(n)
    return sum(found)


result = (bodies(), words(), document(), primes(1500), pow(3, 4001, 10**300 + 7))
print(hashlib.sha256(repr(result).encode()).hexdigest())
