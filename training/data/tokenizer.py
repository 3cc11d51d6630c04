"""A byte-level BPE tokenizer of the questions' own words, and the chat template. Any text can be written
with it.
"""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prismoe.training.data.questions import corpus

END, IMAGE = "<|endoftext|>", "<image>"
VOCABULARY = 1536
CHAT_TEMPLATE = r"""{%- for message in messages -%}
  {%- set ns = namespace(text='') -%}
  {%- if message.content is string -%}
    {%- set ns.text = message.content -%}
  {%- else -%}
    {%- for part in message.content -%}
      {%- if part.type in ('image', 'image_url') -%}
        {%- set ns.text = ns.text + '<image>\n' -%}
      {%- else -%}
        {%- set ns.text = ns.text + part.text -%}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {%- if message.role in ('system', 'developer') -%}
    {{- ns.text + ' ' -}}
  {%- elif message.role == 'user' -%}
    {{- 'USER: ' + ns.text + ' ASSISTANT:' -}}
  {%- else -%}
    {{- ' ' + ns.text + eos_token -}}
  {%- endif -%}
{%- endfor -%}
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train it, which takes a second, and is the same each time."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=[IMAGE],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
