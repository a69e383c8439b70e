"""Modified Kneser–Ney and Witten–Bell with dictionaries, straight from the formulas: the reference for the fast one.

Chen & Goodman, "An empirical study of smoothing techniques for language modeling", 1999, sections 2.5 and 3.5.
"""

from collections import Counter, defaultdict

START = "start"


class SlowNGram:
    def __init__(self, documents, order, alphabet, smoothing):
        self.order, self.alphabet, self.smoothing = order, alphabet, smoothing
        raw = defaultdict(Counter)  # raw[k][g]: occurrences of the k-gram g
        for document in documents:
            symbols = [START, *document]
            for end in range(1, len(symbols)):
                for k in range(1, order + 1):
                    if end - k + 1 >= 0:
                        raw[k][tuple(symbols[end - k + 1 : end + 1])] += 1
        self.counts = {order: raw[order]}
        for k in range(1, order):
            if smoothing == "witten-bell":
                self.counts[k] = raw[k]
                continue
            before = defaultdict(set)
            for gram in raw[k + 1]:
                before[gram[1:]].add(gram[0])
            self.counts[k] = {gram: count if gram[0] == START else len(before[gram]) for gram, count in raw[k].items()}
        self.discounts = {k: self._discounts(self.counts[k]) for k in self.counts}

    @staticmethod
    def _discounts(counts):
        n = Counter(counts.values())
        result = {1: 0.5, 2: 1.0, 3: 1.5}
        if n[1] and n[2]:
            y = n[1] / (n[1] + 2 * n[2])
            for i in (1, 2, 3):
                if n[i]:
                    d = i - (i + 1) * y * n[i + 1] / n[i]
                    if 0 < d <= i:
                        result[i] = d
        return result

    def probability(self, symbol, history):
        """history: a tuple of all that stands before, START included where it is a document's beginning."""
        return self._probability(symbol, tuple(history), self.order)

    def _probability(self, symbol, history, k):
        if k == 0:
            return 1.0 / self.alphabet
        lower = self._probability(symbol, history, k - 1)
        if k - 1 > len(history):
            return lower
        context = history[len(history) - (k - 1) :]
        following = {g[-1]: c for g, c in self.counts[k].items() if g[:-1] == context}
        if not following:
            return lower
        total = sum(following.values())
        count = following.get(symbol, 0)
        if self.smoothing == "witten-bell":
            types = len(following)
            return (count + types * lower) / (total + types)
        d = self.discounts[k]
        discounted = max(count - d[min(count, 3)], 0) if count else 0.0
        gamma = sum(d[min(c, 3)] for c in following.values()) / total
        return discounted / total + gamma * lower
