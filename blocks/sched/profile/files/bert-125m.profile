llm-blocks profile 1
model: BERT-125M
device: V100-SXM2-16GB
published: AlpaServe (Li et al., 2023): stage latencies of alpa-projects/mms, deprecated/alpasim/model.py
derived: weight_bytes: 125e6 parameters of 2 bytes, divided evenly

configuration 1 x 1
weight_bytes: 250000000
batch 1: 0.01893

configuration 1 x 2
weight_bytes: 125000000 125000000
batch 1: 0.01 0.01

configuration 2 x 1
weight_bytes: 125000000
batch 1: 0.0139
