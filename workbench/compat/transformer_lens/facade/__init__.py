"""The classic class in parts: one subject a file, each a base of `HookedTransformer`.

state.py       what a facade holds: `cfg`, `engine`, `hook_dict`, `parity`
running.py     forward, run_with_hooks, input_to_embed, loss_fn
caching.py     run_with_cache, add_caching_hooks, get_caching_hooks
generating.py  generate
hooking.py     hooks, add_hook, add_perma_hook, reset_hooks, clear_contexts, hook_points
text.py        to_tokens, to_string, to_str_tokens, get_token_position, set_tokenizer
weights.py     W_Q and all other weights, blocks, QK, OV, composition scores, biases
storing.py     state_dict, load_state_dict, load_and_process_state_dict, process_weights_
naming.py      named_modules, modules, children
training.py    parameters, train, eval, init_weights, to, cuda, cpu, half, float, double
flags.py       set_use_attn_result and the other flags
"""
