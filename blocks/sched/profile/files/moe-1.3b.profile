llm-blocks profile 1
model: MoE-1.3B
device: V100-SXM2-16GB
published: AlpaServe (Li et al., 2023): 2.6 GB and 204 ms on one device, table of models
note: quoted from memory of the paper's table, on one device only

configuration 1 x 1
weight_bytes: 2600000000
batch 1: 0.204
