package app.classifier

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import android.graphics.Bitmap
import java.nio.ByteBuffer
import kotlin.math.abs
import kotlin.math.exp

/** One class with its probability. */
data class Answer(val label: String, val index: Int, val probability: Double)

/**
 * Pictures in, labels out. The graph of the model resizes and normalises; it is given the pixels as they are.
 *
 * Generated, and not yet run on a phone: call [differs] with the files of golden/ before you rely on it.
 *
 * @param model the bytes of model.ort
 * @param labels the lines of labels.txt
 */
class Classifier(model: ByteArray, private val labels: List<String>) : AutoCloseable {
    private val environment = OrtEnvironment.getEnvironment()
    private val session = environment.createSession(model, OrtSession.SessionOptions())

    init {
        require(labels.size == CLASSES) { "labels.txt names ${labels.size} classes instead of $CLASSES" }
    }

    /** The most probable classes of a picture that stands upright (EXIF is the caller's), best first. */
    fun classify(bitmap: Bitmap, top: Int = 5): List<Answer> {
        val chances = probabilities(outputs(pixelsOf(bitmap), bitmap.height, bitmap.width))
        return chances.indices.sortedByDescending { chances[it] }.take(top).map { Answer(labels[it], it, chances[it]) }
    }

    /** What the model answers, for height x width x [CHANNELS] bytes in a direct buffer, row by row. */
    fun outputs(pixels: ByteBuffer, height: Int, width: Int): FloatArray {
        require(HEIGHT == 0 || (height == HEIGHT && width == WIDTH)) { "this model takes $HEIGHT x $WIDTH only" }
        val shape = longArrayOf(1, height.toLong(), width.toLong(), CHANNELS.toLong())
        pixels.rewind()
        OnnxTensor.createTensor(environment, pixels, shape, OnnxJavaType.UINT8).use { input ->
            session.run(mapOf(INPUT to input), setOf(OUTPUT)).use { answers ->
                val values = (answers[0] as OnnxTensor).floatBuffer
                return FloatArray(CLASSES) { values.get(it) }
            }
        }
    }

    /** Softmax, unless the model gives probabilities already. */
    fun probabilities(outputs: FloatArray): DoubleArray {
        if (GIVES_PROBABILITIES) return DoubleArray(outputs.size) { outputs[it].toDouble() }
        val largest = outputs.fold(Float.NEGATIVE_INFINITY) { most, value -> maxOf(most, value) }
        val powers = DoubleArray(outputs.size) { exp((outputs[it] - largest).toDouble()) }
        val sum = powers.sum()
        return DoubleArray(outputs.size) { powers[it] / sum }
    }

    /** Whether a golden picture (golden/N.bin) is answered otherwise than golden.json says. */
    fun differs(pixels: ByteBuffer, height: Int, width: Int, expected: FloatArray): Boolean {
        val got = outputs(pixels, height, width)
        return got.indices.any { !(abs(got[it] - expected[it]) <= TOLERANCE) }
    }

    override fun close() = session.close()

    companion object {
        const val INPUT = %%kotlin_input
        const val OUTPUT = %%kotlin_output
        const val CHANNELS = %%channels
        const val HEIGHT = %%height // 0: any
        const val WIDTH = %%width
        const val CLASSES = %%class_count
        const val GIVES_PROBABILITIES = %%gives_probabilities
        const val TOLERANCE = %%tolerance

        /** The pixels of a bitmap; transparency is dropped, colour becomes grey by the ITU-R 601 luma where it has to. */
        fun pixelsOf(bitmap: Bitmap): ByteBuffer {
            val colors = IntArray(bitmap.width * bitmap.height)
            bitmap.getPixels(colors, 0, bitmap.width, 0, 0, bitmap.width, bitmap.height)
            val pixels = ByteBuffer.allocateDirect(colors.size * CHANNELS)
            for (color in colors) {
                val red = color shr 16 and 0xff
                val green = color shr 8 and 0xff
                val blue = color and 0xff
                if (CHANNELS == 1) {
                    pixels.put((19595 * red + 38470 * green + 7471 * blue + 0x8000 shr 16).toByte())
                } else {
                    pixels.put(red.toByte()).put(green.toByte()).put(blue.toByte())
                }
            }
            return pixels
        }
    }
}
