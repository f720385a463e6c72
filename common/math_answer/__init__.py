"""The form and the exact value of a final answer in mathematics, as text or LaTeX.

A grammar of what an answer may look like, bounded in size and linear in time, that never evaluates
what it reads. Pure, without a computer algebra system: the broker checks gold answers with it when
it loads prompts, the verifier compares trees of it, the collector counts votes by it.
"""
