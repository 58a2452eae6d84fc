"""The reasoning primitives (Saunshi et al. 2024): copying and variable assignment, as text."""

import numpy as np

from loopjax.data.items import Item

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = (  # common short words, about one token each
    "the and you that was for are with his they one have this from had hot but some what there "
    "out other were all your when use word how said each she which their time will way about many "
    "then them would write like these her long make thing see him two has look more day could come "
    "did sound most number who over know water than call first people may down side been now find "
    "any new work part take get place made live where after back little only round man year came "
    "show every good give our under name very through just form great think say help low line turn "
    "cause much mean before move right boy old too same tell does set three want air well also play "
    "small end put home read hand port large spell add even land here must big high such follow act "
    "why ask men change went light kind off need house picture try again animal point mother world "
    "near build self earth father head stand own page should country found answer school grow study "
    "still learn plant cover food sun four state keep eye never last let thought city tree cross "
    "farm hard start might story saw far sea draw left late run while press close night real life "
    "few north open seem next white walk ease both mark often letter until mile river car feet care"
).split()


def copying(rng: np.random.Generator, words: str) -> Item:
    """Ten words, then five in a row of the same words again; the answer is the word that followed.

    `words` is "random" (three letters) or "real".
    """
    if words == "real":
        chosen = [WORDS[i] for i in rng.choice(len(WORDS), 10, replace=False)]
    else:
        numbers = rng.choice(26**3, 10, replace=False)
        chosen = ["".join(LETTERS[n // 26**k % 26] for k in range(3)) for n in numbers.tolist()]
    start = int(rng.integers(0, 5))
    text = " ".join([*chosen, *chosen[start : start + 5]])
    prompt = f"Fill in the blank:\n\n{text} ___. ->"
    return Item(prompt, chosen[start + 5], tuple(chosen))


_TEMPLATES = {
    "basic": ("Fill in blank:\n\n{lines}\n{query}=___. ->", "{}={}"),
    "math": (
        "The following is a set of simple mathematical equations.\n\n{lines}\n"
        "What is the numerical value of {query}?\nAnswer:",
        "{}={}",
    ),
    "code": (
        "The following is a very short Python program. Use the program to resolve the value of "
        "the variable in the question.\nProgram:\n{lines}\n\nQuestion:\n"
        "What is the value of {query}?\nAnswer:",
        "{} = {}",
    ),
}


def variable_assignment(rng: np.random.Generator, style: str, depth: int) -> Item:
    """Five variables with values, then `depth` times five that refer to the five before.

    The question is the value of one variable of the last five.
    """
    template, line = _TEMPLATES[style]
    names = [LETTERS[i] for i in rng.choice(26, 5 * (depth + 1), replace=False)]
    values = [str(v + 1) for v in rng.choice(25, 5, replace=False).tolist()]
    value_of = dict(zip(names[:5], values, strict=True))
    lines = [line.format(name, value_of[name]) for name in names[:5]]
    for level in range(1, depth + 1):
        before, here = names[5 * level - 5 : 5 * level], names[5 * level : 5 * level + 5]
        for name, i in zip(here, rng.permutation(5).tolist(), strict=True):
            value_of[name] = value_of[before[i]]
            lines.append(line.format(name, before[i]))
    query = names[5 * depth + int(rng.integers(0, 5))]
    prompt = template.format(lines="\n".join(lines), query=query)
    return Item(prompt, value_of[query], tuple(values))
