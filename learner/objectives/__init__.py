"""What the learner maximises: pure functions of log-probabilities, rewards and lengths.

Read them in this order, each file one idea with its papers and equations:

1. ``advantages``: rewards of a group -> how much better than its siblings each answer is.
2. ``ratios``: how much likelier the policy makes a token, or a whole answer, than another did.
3. ``surrogates``: ratio and advantage -> what gradient ascent raises (PPO clip, CISPO, REINFORCE).
4. ``corrections``: what is done about samples of an older, or of another machine's, policy.
5. ``kl``: the distance to a reference policy, in the loss or in the reward.
6. ``aggregation``: tokens and answers -> one number, as a sum with a denominator that adds up.
7. ``objective``: the terms put together as the ``[learner.loss]`` section says.
8. ``critic``: what PPO needs besides: GAE, value loss, token rewards.
9. ``process``: rewards of single steps -> an advantage a token.

Which paper is which combination of keys: ``docs/objectives.md``.
"""
