import CoreGraphics
import Foundation
import OnnxRuntimeBindings

/// One class with its probability.
struct Answer {
    let label: String
    let index: Int
    let probability: Double
}

/// Pictures in, labels out. The graph of the model resizes and normalises; it is given the pixels as they are.
///
/// Generated, and not yet run on a phone: call `differs` with the files of golden/ before you rely on it.
final class Classifier {
    static let input = %%swift_input
    static let output = %%swift_output
    static let channels = %%channels
    static let height = %%height // 0: any
    static let width = %%width
    static let classes = %%class_count
    static let givesProbabilities = %%gives_probabilities
    static let tolerance: Float = %%tolerance

    enum Problem: Error {
        case labels(Int)
        case size(Int, Int)
        case picture
    }

    private let environment: ORTEnv
    private let session: ORTSession
    private let labels: [String]

    /// - Parameters:
    ///   - modelPath: of model.ort
    ///   - labels: the lines of labels.txt
    init(modelPath: String, labels: [String]) throws {
        guard labels.count == Self.classes else { throw Problem.labels(labels.count) }
        environment = try ORTEnv(loggingLevel: .warning)
        session = try ORTSession(env: environment, modelPath: modelPath, sessionOptions: nil)
        self.labels = labels
    }

    /// The most probable classes of a picture that stands upright (its orientation is the caller's), best first.
    func classify(_ image: CGImage, top: Int = 5) throws -> [Answer] {
        let pixels = try Self.pixels(of: image)
        let chances = probabilities(try outputs(pixels, height: image.height, width: image.width))
        let order = chances.indices.sorted { chances[$0] > chances[$1] }
        return order.prefix(top).map { Answer(label: labels[$0], index: $0, probability: chances[$0]) }
    }

    /// What the model answers, for height x width x channels bytes, row by row.
    func outputs(_ pixels: Data, height: Int, width: Int) throws -> [Float] {
        guard Self.height == 0 || (height == Self.height && width == Self.width) else {
            throw Problem.size(height, width)
        }
        let shape = [1, height, width, Self.channels].map { NSNumber(value: $0) }
        let value = try ORTValue(tensorData: NSMutableData(data: pixels), elementType: .uInt8, shape: shape)
        let answers = try session.run(withInputs: [Self.input: value], outputNames: [Self.output], runOptions: nil)
        guard let data = try answers[Self.output]?.tensorData() else { throw Problem.picture }
        var values = [Float](repeating: 0, count: data.length / MemoryLayout<Float>.size)
        data.getBytes(&values, length: data.length)
        return values
    }

    /// Softmax, unless the model gives probabilities already.
    func probabilities(_ outputs: [Float]) -> [Double] {
        if Self.givesProbabilities { return outputs.map(Double.init) }
        let largest = outputs.max() ?? 0
        let powers = outputs.map { exp(Double($0 - largest)) }
        let sum = powers.reduce(0, +)
        return powers.map { $0 / sum }
    }

    /// Whether a golden picture (golden/N.bin) is answered otherwise than golden.json says.
    func differs(_ pixels: Data, height: Int, width: Int, expected: [Float]) throws -> Bool {
        let got = try outputs(pixels, height: height, width: width)
        return got.count != expected.count || zip(got, expected).contains { !(abs($0 - $1) <= Self.tolerance) }
    }

    /// The pixels of a picture in sRGB; transparency is dropped, colour becomes grey by the ITU-R 601 luma where it has to.
    static func pixels(of image: CGImage) throws -> Data {
        let (height, width) = (image.height, image.width)
        var colors = [UInt8](repeating: 0, count: height * width * 4)
        guard let space = CGColorSpace(name: CGColorSpace.sRGB),
              let context = CGContext(
                  data: &colors, width: width, height: height, bitsPerComponent: 8, bytesPerRow: 4 * width,
                  space: space, bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)
        else { throw Problem.picture }
        context.draw(image, in: CGRect(x: 0, y: 0, width: width, height: height))
        var pixels = Data(capacity: height * width * channels)
        for at in stride(from: 0, to: colors.count, by: 4) {
            let (red, green, blue) = (Int(colors[at]), Int(colors[at + 1]), Int(colors[at + 2]))
            if channels == 1 {
                pixels.append(UInt8((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16))
            } else {
                pixels.append(contentsOf: [UInt8(red), UInt8(green), UInt8(blue)])
            }
        }
        return pixels
    }
}
