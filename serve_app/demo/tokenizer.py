"""The demo model's tokenizer: byte-level BPE in which a word has the same tokens wherever it stands.

A model this small copies well only token by token. So a word is split without the space before it: `Zurich` is the
same tokens in a sentence and in a JSON string. Only the most frequent words, which are seldom copied, join with it.
"""

import json
from collections import Counter
from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from serve_app.demo.template import BOS, EOS, HEADER, MARKUP

VOCABULARY = 3072
SPACED_WORDS = 150  # tokens that are a frequent word with the space before it
SPACE = "\u0120"  # as byte-level BPE writes a space
JSON_MARKS = r'\{"|": \{"|": "|": |", "|"\}+|"'
REST = rf'|\p{{N}}|{JSON_MARKS}|[^\s\p{{L}}\p{{N}}"]+|\n+| +|\s'


def train_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """A tokenizer of VOCABULARY tokens: every text has tokens, and every token sequence has a text."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = _splitter(r"\p{L}+" + REST)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - SPACED_WORDS - len(MARKUP),
        special_tokens=[BOS, HEADER, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(texts, trainer)
    trained = json.loads(words.to_str())["model"]
    vocabulary: dict[str, int] = trained["vocab"]
    merges = [tuple(merge) for merge in trained["merges"]]
    spaced = _frequent_words(texts, vocabulary)
    for word in spaced:
        vocabulary[SPACE + word] = len(vocabulary)
        merges.append((SPACE, word))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = _splitter(rf" (?:{'|'.join(spaced)})(?!\p{{L}})|\p{{L}}+" + REST)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BOS, HEADER, EOS])
    # Tokens but not special ones: the tool and reasoning parsers read markup in the answer's text.
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in MARKUP])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def _splitter(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _frequent_words(texts: Sequence[str], vocabulary: dict[str, int]) -> list[str]:
    """The words that most often follow a space, of those that are one token."""
    counts = Counter(word for text in texts for word in text.split(" ")[1:])
    counts = Counter({word: count for word, count in counts.items() if word.isascii() and word.isalpha()})
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return [word for word in ranked if (word in vocabulary and len(word) > 1) or word in ("a", "I")][:SPACED_WORDS]
