"""Request bodies to arrays and arrays to reply bodies: the Open Inference Protocol v2, and plain rows.

Pure: bytes in, arrays out, no clock and no socket. Every malformed body is a `RequestError` with an HTTP status and a
message that names the location, the value found and the values allowed. Rules:

- A tensor is sent as the signature names it (``numeric`` FP32 [rows, k], ``categorical`` BYTES [rows, m]) and in its
  datatype, or as one tensor a column (named as the column, with shape [rows] or [rows, 1]) in any numeric datatype
  whose values keep their meaning (see `json_tensors`).
- ``data`` is flat (row-major) or nested as its shape, and must hold exactly the product of the shape. Binary tensors
  (see `binary_tensors`) must be exactly as long as their shape needs.
- ``null`` is a missing value: NaN in a numeric tensor, the empty string in a categorical one. The literals
  ``NaN`` and ``Infinity`` are not JSON, and a number beyond the range of FP32 is refused, not made infinite.
- A value of a categorical column may be sent as text, a number or a boolean, in any datatype; `categories` says which
  category it is, the same one for every request format.
- A row of ``/predict`` names every column, with null for a missing value: an absent column is more often a mistake
  than a missing value, and silent imputation would hide the mistake.
- A category that was not in the training data is answered (the graph encodes it as zeros), counted, and told in the
  answer.
- Unknown request parameters are ignored, as the protocol says; those of unsupported extensions (shared memory)
  are refused.

`http_error` has the messages, `json_tensors` JSON values, `categories` those of categorical columns, `binary_tensors`
bytes, `input_schema` the signature, `responses` the replies.

Source: Open Inference Protocol, "inference_rest" of the KServe project; Triton's extensions of it.
"""
