"""The learner, to be read in this order; each file teaches one idea.

1. ``train``: the loop as a table of contents. ``run_setup``, ``run_state``: what a run holds.
2. A batch: ``group_source`` (with ``screening``, ``payload_source``, ``reference_source``) pulls
   verified groups, ``layout`` plans, ``documents``, ``batch`` and ``chunk`` pack.
3. A step: ``update`` with ``preparation``, ``gradient_sums``, ``objectives`` (the mathematics),
   ``minibatches``, ``critic_update``, ``training_batch``; ``optim``, ``narrow_adamw`` and
   ``schedule``.
4. Models: ``model``, ``critic``, ``lora``, ``reference``; ``attention``, ``layer_execution``,
   ``activation_checkpointing``, ``sharding``, ``mesh`` say how they are computed.
5. What survives a kill: ``step_record``, ``checkpoint``, ``checkpoint_tensors``,
   ``checkpoint_writer``, ``digests``, ``lineage``, ``resume``, ``preemption``, ``rank_watch``,
   ``heartbeat``, ``main``.
6. What keeps bad steps out: ``guards``, ``culprits``, ``findings``, ``alarms``, ``watch``,
   ``replica_check``.
7. What a step says: ``token_view``, ``token_statistics``, ``step_metrics``, ``efficiency``,
   ``telemetry``, ``trackers``, ``stopwatch``, ``reporting``.
8. Looking into a step again: ``flight_recorder``, ``replay``, ``token_rows``, ``replay_report``,
   ``replay_page``.
9. Weights on their way to actors: ``publishing``, ``weight_snapshot``, ``weight_publisher``,
   ``weight_sender``, ``canary``, ``export``.
10. Beside the loop: ``sft`` and ``sft_corpus``, ``tiny_model``, ``cli``, ``broker_client``; studies
    behind ``headrace bench``: ``step_study``, ``head_study``, ``packing_study``, ``trl_study``.
"""
